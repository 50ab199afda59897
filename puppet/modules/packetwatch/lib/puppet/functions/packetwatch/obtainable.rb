# SPDX-License-Identifier: Apache-2.0
# frozen_string_literal: true

# What a package that is not strictly needed can be ensured to be: installed where it is, or where the archive
# has it, and absent where neither holds, with a notice. For a Deferred value: only the agent can know.
#
# @api private
Puppet::Functions.create_function(:'packetwatch::obtainable') do
  # @param package its name
  # @return installed or absent
  dispatch :obtainable do
    param 'String[1]', :package
    return_type "Enum['installed', 'absent']"
  end

  def obtainable(package)
    return 'installed' if questions.any? { |question, answer| answered?([*question, package], answer) }

    Puppet.notice("The package #{package} is not to be had. Packetwatch works without it.")
    'absent'
  end

  # Commands, and what their answer is where the package is there. dpkg-query also knows those that others suggest.
  def questions
    if File.executable?('/usr/bin/dpkg-query')
      { ['dpkg-query', '--show', '--showformat', '${db:Status-Status}'] => /\Ainstalled$/, ['apt-cache', 'show'] => /\S/ }
    else
      { ['rpm', '--query'] => /\S/, ['dnf', '--quiet', 'repoquery'] => /\S/ }
    end
  end

  # A mirror that does not answer must not hold up the run.
  def answered?(command, expected)
    answer = IO.popen(['timeout', '60', *command], in: File::NULL, err: File::NULL, &:read)
    $?.success? && answer.match?(expected)
  end
end
