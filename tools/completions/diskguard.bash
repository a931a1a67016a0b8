# bash completion of diskguard, mount.diskguard, diskguardctl, fsck.diskguard and umount.fuse.diskguard.

# What stands before the cursor, from the last blank on: COMP_WORDS is split at = and :, too.
_diskguard_word() {
    word=${COMP_LINE:0:COMP_POINT}
    word=${word##*[[:blank:]]}
}

# _diskguard_reply WORD...: those that begin with $word; bash wants them without what COMP_WORDBREAKS has split off.
_diskguard_reply() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        [[ $candidate != *= && $candidate != *, ]] || compopt -o nospace 2>/dev/null
        COMPREPLY+=("${candidate#"${word%"${word##*[=:]}"}"}")
    done < <(compgen -W "$*" -- "$word")
}

_diskguard_directories() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -d -- "${COMP_WORDS[COMP_CWORD]}")
}

_diskguard_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
}

# Mount options, of which the last one behind a comma is completed.
_diskguard_options() {
    local before='' name list=() all='host-id= state-dir= wait= threshold= damaged= seal= raw= shared= writers= readers= managers= subtype= fence= takeover=
        takeover-wait= entry-timeout= attr-timeout= no_allow_other debug allow_other allow_root ro rw nosuid nodev noexec noatime'
    [[ $word != *,* ]] || before=${word%,*},
    case ${word##*,} in
    damaged=*) all='damaged=claim damaged=refuse' ;;
    fence=*) all='fence=auto fence=none' ;;
    managers=*) all='managers=none' ;;
    raw=*) all='raw=auto raw=all raw=none' ;;
    readers=*) all='readers=protect readers=ignore' ;;
    seal=*) all='seal=refuse seal=size' ;;
    takeover=*) all='takeover=manual takeover=lock takeover=lock-unproven' ;;
    writers=*) all='writers=process writers=host' ;;
    esac
    for name in $all; do
        list+=("$before$name")
    done
    _diskguard_reply "${list[@]}"
}

_diskguard() {
    local word
    _diskguard_word
    if [[ ${COMP_LINE:0:COMP_POINT} =~ [[:blank:]]-o[[:blank:]]*[^[:blank:]]*$ ]]; then
        word=${word#-o}
        _diskguard_options
    elif [[ $word == -* ]]; then
        _diskguard_reply -f -d -o -h --help -V --version
    else
        _diskguard_directories
    fi
}

_diskguardctl() {
    local word
    _diskguard_word
    case $word in
    --fence=*) _diskguard_reply --fence=none ;;
    --timeout=* | --wait=* | --size=*) COMPREPLY=() ;;
    -*) _diskguard_reply --datastore --json --all --timeout= --wait= --size= --upgrade --fence=none --yes-unproven --help --version ;;
    *)
        local w
        for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
            case $w in
            init | list | hosts) _diskguard_directories && return ;;
            show | why | wait | retry | takeover | unseal) _diskguard_files && return ;;
            esac
        done
        if [[ ${COMP_WORDS[COMP_CWORD - 1]} == --datastore ]]; then
            _diskguard_directories
        else
            _diskguard_reply init list show why wait hosts retry takeover unseal
        fi
        ;;
    esac
}

_fsck_diskguard() {
    local word
    _diskguard_word
    case $word in
    --fence=*) _diskguard_reply --fence=auto --fence=none ;;
    --host-id=* | --size=* | --state-dir=*) COMPREPLY=() ;;
    -*)
        _diskguard_reply -n -p -a -y --takeover --confirm-host-is-down --size= --host-id= --state-dir= --fence= --json -v --verbose -V --version --help -C -t -T -M -R
        ;;
    *) _diskguard_files ;;
    esac
}

_umount_fuse_diskguard() {
    local word
    _diskguard_word
    if [[ $word == -* ]]; then
        _diskguard_reply -f -l -n -r -v -N -t --help --version
    else
        _diskguard_directories
    fi
}

complete -F _diskguard diskguard mount.diskguard
complete -F _diskguardctl diskguardctl
complete -F _fsck_diskguard fsck.diskguard
complete -F _umount_fuse_diskguard umount.fuse.diskguard
