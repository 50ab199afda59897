# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

# Compiles catalogs, many in one process. In: {"modulepath": …, "facts": {…}, "manifests": [Puppet code, …]}.
# Out: for each manifest {"error": text}, or {"Type[title]": its parameters, …}.

require 'json'
require 'puppet'
require 'puppet_pal'

def compile(pal, facts, manifest)
  pal.with_catalog_compiler(facts: facts.dup) do |compiler| # a compilation freezes them
    compiler.evaluate_string(manifest)
    compiler.compile_additions
    compiler.with_json_encoding { |catalog| parameters(JSON.parse(catalog.encode)) }
  end
rescue Puppet::Error => e
  { 'error' => e.message }
end

def parameters(catalog)
  catalog['resources'].to_h { |each| ["#{each['type']}[#{each['title']}]", each['parameters'] || {}] }
end

Puppet.initialize_settings(['--confdir', Dir.pwd, '--vardir', Dir.pwd])
given = JSON.parse($stdin.read)
answers = Puppet::Pal.in_tmp_environment('test', modulepath: [given['modulepath']], facts: {}) do |pal|
  given['manifests'].map { |manifest| compile(pal, given['facts'], manifest) }
end
puts JSON.generate(answers)
