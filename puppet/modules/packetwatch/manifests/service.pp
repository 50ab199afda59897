# SPDX-License-Identifier: Apache-2.0
# @summary The service. A change of settings is a reload, and a restart where the monitor asks for one
#
# It alone knows which of the changed settings a reload cannot put in force. With a fault in the settings,
# or without an answer, the reload fails and so does the run; nothing is restarted then.
#
# @api private
class packetwatch::service {
  service { 'packetwatch':
    ensure  => $packetwatch::service_ensure,
    enable  => $packetwatch::service_enable,
    restart => join([
        'answer=$(/usr/bin/packetwatch reload -o json) || exit;',
        'case $answer in',
        '*\'"restart_needed": []\'*) ;;',
        '*) systemctl restart packetwatch ;;',
        'esac',
    ], ' '),
  }
}
