# SPDX-License-Identifier: Apache-2.0
# bash completion for packetwatch. A test compares it with the commands and settings there are.

_packetwatch_flags() {
    local asking="--socket --config --output -o --help"
    case $1 in
    "") echo "--help --version" ;;
    block | allow) echo "--help" ;;
    status | tail | why | "allow list" | "allow add") echo "$asking" ;;
    reload | "allow remove") echo "--confirm $asking" ;;
    confirm) echo "--revert $asking" ;;
    mode) echo "--keep --confirm $asking" ;;
    "block list") echo "--would --since $asking" ;;
    "block add") echo "--duration --reason --force --confirm $asking" ;;
    "block remove") echo "--all $asking" ;;
    check) echo "--dump --config --output -o --help" ;;
    version) echo "--output -o --help" ;;
    replay) echo "--local --from-log --output -o $(_packetwatch_flags run)" ;;
    run)
        echo "--config --help --interface --mode --allow --block --open-ports --socket --state --pin
            --allow-own --allow-gateways --allow-sessions --allow-resolvers --allow-time-servers
            --allow-puppet-server --scan-ports --scan-window --scan-count
            --block-rules --block-honeypot-ports --block-first --block-duration --block-forget
            --block-proof --block-ipv6-prefix --block-storm --xdp-mode --log-format --log-file
            --log-connections --log-anonymize
            --log-fold-rate --log-fold-burst --log-daily-size --metrics-listen --table-trackers
            --table-blocks --ring-size --loader-headers"
        ;;
    esac
}

_packetwatch_words() {
    case $1 in
    "") echo "run status tail reload confirm mode block why allow check replay version" ;;
    block | allow) echo "list add remove" ;;
    mode) echo "enforce observe" ;;
    esac
}

# The values of a flag; a path where there are none to name.
_packetwatch_values() {
    case $1 in
    -o | --output) echo "text json" ;;
    --interface) echo "default-route $(cd /sys/class/net 2>/dev/null && echo *)" ;;
    --mode) echo "enforce observe" ;;
    --scan-count) echo "all closed" ;;
    --block-proof) echo "challenge none" ;;
    --xdp-mode) echo "auto native generic" ;;
    --log-format) echo "auto text json journal" ;;
    --log-connections) echo "each summary off" ;;
    --loader-headers) echo "auto uapi kernel" ;;
    --allow-own | --allow-gateways | --allow-sessions) echo "yes no" ;;
    --allow-resolvers | --allow-time-servers | --allow-puppet-server | --log-anonymize) echo "yes no" ;;
    --metrics-listen) echo "off" ;;
    --block-duration | --block-first | --duration) echo "forever" ;;
    --block-rules) echo "off" ;;
    esac
}

_packetwatch() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command="" each
    COMPREPLY=()
    for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $command,$each in
        *,-*) ;;
        ,run | ,status | ,tail | ,reload | ,confirm | ,mode | ,block | ,why | ,allow | ,check | ,replay | ,version) command=$each ;;
        block,list | block,add | block,remove | allow,list | allow,add | allow,remove) command="$command $each" ;;
        esac
    done
    if [[ $word != -* ]]; then
        case $previous in
        --config | --socket | --state | --pin | --log-file)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
            ;;
        --allow | --block | --open-ports | --since | --reason | --confirm | --scan-ports | --scan-window | \
            --block-honeypot-ports | --block-forget | --block-ipv6-prefix | --block-storm | --log-fold-* | \
            --log-daily-size | --table-* | --ring-size)
            return
            ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$(_packetwatch_values "$previous")" -- "$word")
        [[ -n $(_packetwatch_values "$previous") ]] && return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$(_packetwatch_words "$command") $(_packetwatch_flags "$command")" -- "$word")
}

complete -F _packetwatch packetwatch
