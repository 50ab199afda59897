# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

require 'spec_helper'
require 'fileutils'
require 'json'
require 'socket'
require 'timeout'
require 'tmpdir'

describe PuppetX::Packetwatch::Fact do
  around { |example| Dir.mktmpdir { |root| in_root(root) { Timeout.timeout(10) { example.run } } } }

  def in_root(root)
    @root = root
    yield
  ensure
    @thread&.kill&.join
    @server&.close
  end

  # Answers each connection with these bytes; a block does more with it.
  def serve(answer, path = '/run/packetwatch/packetwatch.sock')
    FileUtils.mkdir_p(File.dirname(@root + path))
    @server = UNIXServer.new(@root + path)
    @requests = requests = []
    @thread = Thread.new do
      loop do
        link = @server.accept
        requests << link.gets
        link.write(answer)
        block_given? ? yield(link) : link.close
      rescue SystemCallError
        link&.close
      end
    end
  end

  def put(path, text = '')
    FileUtils.mkdir_p(File.dirname(@root + path))
    File.write(@root + path, text)
  end

  def fact(release = '6.1.0-18-amd64')
    described_class.new(@root, release).to_h
  end

  def status(**more)
    JSON.generate(ok: true, result: { version: '0.1.0', mode: 'enforce', protecting: true, interfaces: [], config: { ok: true, restart_needed: [] }, **more })
  end

  let(:silent) { nothing.merge('running' => true) }
  let(:nothing) { { 'running' => false, 'headers' => { 'running' => false, 'uapi' => false }, 'kernel_supported' => true } }

  it 'is short where there is nothing' do
    expect(fact).to eq nothing
  end

  it 'tells what the monitor says' do
    put '/usr/lib/packetwatch/packetwatch/__init__.py', %("""Doc."""\n\n__version__ = "0.1.0~git7"\n)
    put '/usr/include/linux/bpf.h'
    put '/lib/modules/6.1.0-18-amd64/build/include/x'
    serve "#{status(interfaces: [{ name: 'eth0', attached: true, mode: 'native', fault: '' }, { name: 'eth1', attached: false, fault: 'gone' }])}\n"
    expect(fact).to eq(
      'version' => '0.1.0~git7', 'running' => true, 'mode' => 'enforce', 'protecting' => true,
      'interfaces' => { 'eth0' => { 'watched' => true, 'xdp_mode' => 'native' }, 'eth1' => { 'watched' => false } },
      'settings' => { 'ok' => true, 'restart_needed' => [] },
      'headers' => { 'running' => true, 'uapi' => true }, 'kernel_supported' => true
    )
    expect(@requests).to eq [%({"do": "status"}\n)]
  end

  it 'tells of settings that are not in force' do
    serve "#{status(config: { ok: false, restart_needed: %w[ring.size table.blocks] })}\n"
    expect(fact['settings']).to eq('ok' => false, 'restart_needed' => %w[ring.size table.blocks])
  end

  it 'takes an answer in pieces' do
    text = "#{status(mode: 'observe')}\n"
    serve(text[0, 20]) do |link|
      link.write(text[20..])
      link.close
    end
    expect(fact['mode']).to eq 'observe'
  end

  it 'finds the socket that the settings name, the last of them' do
    put '/etc/packetwatch/packetwatch.conf', "[packetwatch]\n#socket = /run/none\nsocket = /run/first\n"
    put '/etc/packetwatch/packetwatch.conf.d/50-puppet.conf', "[packetwatch]\n  socket=/run/second\n"
    put '/etc/packetwatch/packetwatch.conf.d/60.conf.dpkg-old', "socket = /run/third\n"
    serve "#{status}\n", '/run/second'
    expect(fact['running']).to be true
  end

  it 'tells a socket that nobody listens on' do
    FileUtils.mkdir_p("#{@root}/run/packetwatch")
    UNIXServer.new("#{@root}/run/packetwatch/packetwatch.sock").close
    expect(fact).to eq nothing
  end

  it 'sees that something runs that tells this user nothing' do
    serve %({"ok": false, "error": "user 1000 is not permitted to use packetwatch"}\n)
    expect(fact).to eq silent
  end

  {
    'nothing' => '', 'no JSON' => "hello\n", 'no object' => "[1, 2]\n", 'another object' => "{}\n", 'half an answer' => '{"ok": true, "resu',
    'bytes' => "\xff\xfe\x00\n", 'a nest' => "#{'[' * 100_000}\n", 'no end' => 'x' * 400_000, 'a large number' => "{\"ok\": 1#{'0' * 60_000}}\n"
  }.each do |what, answer|
    it "tolerates #{what}" do
      serve answer
      expect(fact).to eq silent
    end
  end

  it 'takes nothing over that is not as it must be' do
    serve "#{status(
      mode: "enforce\n", protecting: 'yes', config: [1],
      interfaces: ['eth0', { name: nil, attached: true }, { name: "a\nb" }, { name: 'eth0', attached: 'true', mode: { a: 1 } }, { name: 'eth1', attached: true, mode: 'A B' }]
    )}\n"
    expect(fact).to eq silent.merge('interfaces' => { 'eth0' => { 'watched' => false }, 'eth1' => { 'watched' => true } })
  end

  it 'waits for no one who does not answer' do
    serve('') { |link| link.read }
    expect(fact).to eq silent
  end

  it 'waits for no one who goes on and on' do
    serve('') do |link|
      loop do
        link.write('x')
        sleep 0.001
      end
    end
    expect(fact).to eq silent
  end

  it 'waits for no one who takes no connection' do
    FileUtils.mkdir_p("#{@root}/run/packetwatch")
    @server = Socket.new(:UNIX, :STREAM)
    @server.bind(Socket.pack_sockaddr_un("#{@root}/run/packetwatch/packetwatch.sock"))
    @server.listen(0)
    waiting = Socket.new(:UNIX, :STREAM)
    waiting.connect_nonblock(@server.local_address)
    expect(fact).to eq silent
    waiting.close
  end

  it 'survives a socket path that is too long, a pipe for settings and a directory for the version' do
    put '/etc/packetwatch/packetwatch.conf', "socket = /#{'x' * 200}\n"
    File.mkfifo("#{@root}/etc/packetwatch/packetwatch.conf.d").then { FileUtils.mkdir_p("#{@root}/usr/lib/packetwatch/packetwatch/__init__.py") }
    expect(fact).to eq nothing
  end

  {
    '5.9.16' => false, '5.10.0-8-amd64' => true, '5.14.0-427.el9.x86_64' => true, '4.18.0-553.el8.x86_64' => false, '6.18.44' => true, '10.0' => true, 'odd' => false
  }.each do |release, supported|
    it("knows kernel #{release}") { expect(fact(release)['kernel_supported']).to be supported }
  end

  it 'believes what is watched more than a number' do
    serve "#{status(interfaces: [{ name: 'eth0', attached: true, mode: 'generic' }])}\n"
    expect(fact('4.18.0-553.el8.x86_64')['kernel_supported']).to be true
  end

  it 'is the fact packetwatch' do
    Facter.clear
    Facter.search(File.expand_path('../../lib/facter', __dir__))
    expect(Facter.value(:packetwatch)).to include('running', 'headers', 'kernel_supported')
  end
end
