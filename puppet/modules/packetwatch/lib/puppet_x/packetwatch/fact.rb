# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'etc'
require 'json'
require 'socket'

module PuppetX
  module Packetwatch
    # The structured fact packetwatch: what the monitor says of itself on its socket, and what it finds on this host.
    # Starts no process, and neither waits long nor reads much, whatever is at the other end.
    class Fact
      SECONDS = 0.1
      MOST_BYTES = 128 * 1024
      MOST_FILE = 1024 * 1024
      SOCKET = '/run/packetwatch/packetwatch.sock'
      SETTINGS = %w[/etc/packetwatch/packetwatch.conf /etc/packetwatch/packetwatch.conf.d/*.conf].freeze
      OLDEST_KERNEL = [5, 10].freeze

      def initialize(root = '', release = Etc.uname[:release])
        @root = root
        @release = release
      end

      def to_h
        running, result = ask
        interfaces = interfaces(result)
        {
          'version' => version,
          'running' => running,
          'mode' => %w[enforce observe].find { |mode| mode == result['mode'] },
          'protecting' => boolean(result['protecting']),
          'interfaces' => (interfaces unless result.empty?),
          'settings' => settings(result),
          'headers' => headers,
          'kernel_supported' => watched?(interfaces) || new_enough?,
        }.compact
      end

      private

      # Whether something listens, and what it answers to a status request: nothing, unless it is sensible and in time.
      def ask
        deadline = now + SECONDS
        socket = Socket.new(:UNIX, :STREAM)
        running = connect(socket)
        [running, running ? status(socket, deadline) : {}]
      ensure
        socket&.close
      end

      def connect(socket)
        socket.connect_nonblock(Socket.pack_sockaddr_un(@root + socket_path))
        true
      rescue Errno::EAGAIN
        true # its queue is full
      rescue SystemCallError, ArgumentError
        false
      end

      def status(socket, deadline)
        socket.write_nonblock(%({"do": "status"}\n))
        answer = JSON.parse(read_line(socket, deadline), max_nesting: 16)
        dig(answer, 'result', Hash) || {}
      rescue SystemCallError, IOError, EncodingError, JSON::ParserError
        {}
      end

      def read_line(socket, deadline)
        line = +''
        until line.end_with?("\n")
          left = deadline - now
          raise IOError, 'too late or too long' if left <= 0 || line.bytesize > MOST_BYTES || !socket.wait_readable(left)

          line << socket.read_nonblock(MOST_BYTES)
        end
        line.force_encoding(Encoding::UTF_8).scrub
      end

      def now
        Process.clock_gettime(Process::CLOCK_MONOTONIC)
      end

      # As the settings files have it. No other section has a setting of this name.
      def socket_path
        files = SETTINGS.flat_map { |pattern| Dir.glob(@root + pattern).sort }.select { |path| File.file?(path) }
        said = files.flat_map { |path| File.binread(path, MOST_FILE).to_s.scan(/^[ \t]*socket[ \t]*=[ \t]*(\/\S+)/) }
        said.flatten.last || SOCKET
      end

      # Of the installed package, without starting it.
      def version
        text = File.read("#{@root}/usr/lib/packetwatch/packetwatch/__init__.py", MOST_FILE)
        text[/^__version__ = "([\w.+~-]{1,40})"$/, 1]
      rescue SystemCallError
        nil
      end

      def interfaces(result)
        rows = dig(result, 'interfaces', Array) || []
        rows.grep(Hash).to_h do |row|
          name = row['name'].to_s[/\A[[:graph:]]{1,64}\z/]
          attached = row['attached'] == true
          [name, { 'watched' => attached, 'xdp_mode' => (row['mode'].to_s[/\A[a-z]{1,16}\z/] if attached) }.compact]
        end.reject { |name, _| name.nil? }
      end

      # Whether what the files say is in force: a reload may have failed, or wait for a restart.
      def settings(result)
        config = dig(result, 'config', Hash)
        return unless config

        keys = (dig(config, 'restart_needed', Array) || []).map { |key| key.to_s[/\A[a-z_.]{1,40}\z/] }.compact
        { 'ok' => boolean(config['ok']), 'restart_needed' => keys }.compact
      end

      # Packetwatch compiles with either of them.
      def headers
        {
          'running' => File.directory?("#{@root}/lib/modules/#{@release}/build/include"),
          'uapi' => File.file?("#{@root}/usr/include/linux/bpf.h"),
        }
      end

      def watched?(interfaces)
        interfaces.values.any? { |row| row['watched'] }
      end

      def new_enough?
        version = @release[/\A\d+\.\d+/].to_s.split('.').map(&:to_i)
        (version <=> OLDEST_KERNEL) >= 0
      end

      def dig(hash, key, type)
        value = hash[key] if hash.is_a?(Hash)
        value if value.is_a?(type)
      end

      def boolean(value)
        value if [true, false].include?(value)
      end
    end
  end
end
