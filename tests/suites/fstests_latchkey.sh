# Sourced behind fstests' common/rc, common/dmflakey and common/encrypt on a latchkey store, whose
# devices are loop devices: how one is made, checked and cut off. The config exports LATCHKEY_PROG,
# and LATCHKEY_KEY, a file, where everything in the root is to be encrypted.

# --- making and checking ------------------------------------------------------------------------

# Nobody but us knows what is in an image.
_mount() # [OPTION]... IMAGE DIRECTORY
{
  [ $# -ne 2 ] || set -- -t $FSTYP$FUSE_SUBTYP "$@"
  $MOUNT_PROG $*
}

# umount(8) does not wait for the daemon to close the store. What was killed has none.
_latchkey_umount() # DIRECTORY; false: it was not mounted
{
  mountpoint -q $1 || findmnt -rn $1 >/dev/null || return
  $LATCHKEY_PROG umount $1 2>/dev/null || _unmount $1
}

_latchkey_mkfs() # BYTES
{
  _latchkey_umount $SCRATCH_MNT
  truncate -s $1 $(losetup -nO BACK-FILE $SCRATCH_DEV) && losetup -c $SCRATCH_DEV || return
  $LATCHKEY_PROG mkfs -q -f $SCRATCH_DEV || return
  [ -n "$LATCHKEY_KEY" ] || return 0
  _mount -t $FSTYP$FUSE_SUBTYP $SCRATCH_DEV $SCRATCH_MNT &&
    $LATCHKEY_PROG policy set --key-file $LATCHKEY_KEY $SCRATCH_MNT >/dev/null &&
    $LATCHKEY_PROG umount $SCRATCH_MNT
}

_try_mkfs_dev() # [OPTION]... DEVICE
{
  $LATCHKEY_PROG mkfs -q -f "${!#}"
}

_scratch_mkfs()
{
  _latchkey_mkfs $LATCHKEY_SIZE
}

_try_scratch_mkfs_sized()
{
  _latchkey_mkfs $1
}

_require_names_are_bytes()
{
  :
}

_filesystem_timestamp_range()
{
  echo "-9223372035 9223372035"
}

# The kernel keeps syncfs to itself, so the root is synced.
_sync_fs() # PATH
{
  [ ! -e "$1" ] || $XFS_IO_PROG -rc syncfs -c close -c "open -r $(findmnt -no TARGET -T "$1")" \
    -c fsync "$1" >/dev/null 2>&1
}

_latchkey_check() # DEVICE DIRECTORY
{
  local mounted="" ok=0
  ! _latchkey_umount $2 || mounted=yes
  if ! $LATCHKEY_PROG check --data $1 >$tmp.fsck 2>&1; then
    _log_err "_latchkey_check: the store on $1 is inconsistent"
    cat $tmp.fsck >>$seqres.full
    ok=1
  fi
  rm -f $tmp.fsck
  [ -z "$mounted" ] || _mount -t $FSTYP$FUSE_SUBTYP $1 $2
  return $ok
}

_check_test_fs()
{
  _latchkey_check $TEST_DEV $TEST_DIR
}

_check_dev_fs()
{
  _latchkey_check $1 $SCRATCH_MNT
}

# --- the end of power is that of the daemon -----------------------------------------------------
# What it has not written yet is gone, as with dm-flakey that drops writes; src/godown is a script
# that kills it.

_require_dm_target()
{
  [ "$1" = flakey ] || _notrun "This test requires dm $1 support"
}

_require_flakey_with_error_writes()
{
  _notrun "a daemon that is killed answers no writes with errors"
}

_init_flakey()
{
  :
}

_cleanup_flakey()
{
  _unmount $SCRATCH_MNT &>/dev/null
}

_load_flakey_table() # TABLE [LOCKFS]
{
  case $1 in
  "$FLAKEY_DROP_WRITES") _scratch_shutdown ;;
  "$FLAKEY_ERROR_WRITES") _require_flakey_with_error_writes ;;
  esac
}

_flakey_drop_and_remount()
{
  _load_flakey_table $FLAKEY_DROP_WRITES
  _scratch_unmount
  [ "$1" != yes ] || _check_scratch_fs
  _scratch_mount
}

# --- fscrypt's ioctls ---------------------------------------------------------------------------

_scratch_mkfs_encrypted()
{
  _scratch_mkfs
}

_scratch_mkfs_sized_encrypted()
{
  _scratch_mkfs_sized "$@"
}

# xfs_io asks for padding 16 (0x2) if nothing else is said; here it is 32. A descriptor of the
# session's keys stands for the identifier of the same key.
_set_encpolicy() # DIRECTORY [ARGUMENT]...
{
  local dir=$1
  shift
  set -- "${@/#0x2/3}"
  [[ " $*" == *" -f "* ]] || set -- -f 3 "$@"
  set -- $(_latchkey_identifiers "$@")
  $XFS_IO_PROG -c "set_encpolicy $*" "$dir"
}

_require_get_encryption_nonce_support()
{
  :
}

# FS_IOC_GET_ENCRYPTION_NONCE
_get_encryption_nonce() # DEVICE INODE
{
  findmnt -rn $SCRATCH_MNT >/dev/null || _scratch_mount
  python3 -c 'import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
print(fcntl.ioctl(file, 0x8010661b, bytes(16)).hex())' "$(find $SCRATCH_MNT -inum $2)"
}

# --- keys of the session: policies of the first version have them -------------------------------
# Here are none of those, so such a key is the file system's, for as long as the session has it.
# $tmp.session_keys: DESCRIPTOR IDENTIFIER KEY

_init_session_keyring()
{
  rm -f $tmp.session_keys
}

_check_session_keyring()
{
  :
}

_latchkey_identifiers() # WORD...
{
  local word
  for word; do
    awk -v word="$word" '$1 == word { word = $2 " -v 2" } END { print word }' \
      $tmp.session_keys 2>/dev/null || printf '%s\n' "$word"
  done
}

_add_session_encryption_key() # DESCRIPTOR KEY
{
  local identifier
  identifier=$(_add_enckey $SCRATCH_MNT "$2" | awk '{ print $NF }')
  printf '%s\n' "$1 $identifier $2" >>$tmp.session_keys
}

_unlink_session_encryption_key() # DESCRIPTOR
{
  local identifier
  identifier=$(awk -v d=$1 '$1 == d { print $2 }' $tmp.session_keys)
  sed -i "/^$1 /d" $tmp.session_keys
  _rm_enckey $SCRATCH_MNT $identifier >>$seqres.full
}

_revoke_session_encryption_key() # DESCRIPTOR
{
  _unlink_session_encryption_key $1
}

if [ -z "$(declare -F _fstests_scratch_mount)" ]; then
  eval "$(declare -f _try_scratch_mount | sed '1s/.*/_fstests_scratch_mount()/')"
fi

_try_scratch_mount()
{
  local descriptor identifier key
  _fstests_scratch_mount "$@" || return
  [ -f $tmp.session_keys ] || return 0
  while read -r descriptor identifier key; do
    _add_enckey $SCRATCH_MNT "$key" >/dev/null
  done <$tmp.session_keys
}
