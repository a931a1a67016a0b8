"""Where names are on a datastore (include/diskguard/layout.h)."""
import os


def shard(key, kind="claims"):
    """layout.h"""
    mask = (1 << 64) - 1
    key = (key ^ (key >> 33)) * 0xFF51AFD7ED558CCD & mask
    key = (key ^ (key >> 33)) * 0xC4CEB9FE1A85EC53 & mask
    return "%02x" % ((key ^ (key >> 33)) >> (56 if kind.startswith("claims") else 60))


def inner_names(datastore, kind, key=None):
    """All of that kind, or those in the shard of one key, and what lies in no shard: there are 256 of them to list."""
    folder = os.path.join(datastore, ".diskguard", kind) + "/"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if len(name) != 2:
            yield name
        elif key is None or name == shard(key, kind):
            yield from os.listdir(folder + name)


def inner_path(datastore, kind, name):
    folder = os.path.join(datastore, ".diskguard", kind)
    sharded = os.path.join(folder, shard(int(name[:16], 16), kind))
    return os.path.join(sharded if os.path.isdir(sharded) else folder, name)
