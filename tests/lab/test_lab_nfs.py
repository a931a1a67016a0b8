#!/usr/bin/env python3
"""The protocol between two real NFS clients: NFSv4.2 and NFSv3, and the mount options that change what a client caches."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import labcases
import labhost
import dgtest

suite = dgtest.Suite(__file__, needs="hooks")


def scenario(title, function, versions=("4.2", "3"), options="", limit=300, pass_reboot=False, **kw):
    for version in versions:
        def case(build, version=version):
            lab = labhost.nfs_lab()
            site = labhost.Site(lab, version, build, options)
            if pass_reboot:
                def reboot():
                    lab.boot("A")
                    lab.up("A")
                    labhost.nfs_mount(lab, "A", version, options)
                kw["reboot"] = reboot
            function(site, **kw)
            site.close()
        suite.case("%s, NFSv%s%s" % (title, version, options and " " + options), limit=limit)(case)


scenario("race for one image", labcases.race, rounds=500, limit=900)
scenario("race for one image", labcases.race, options="noac", rounds=60)
scenario("race for one image", labcases.race, ("3",), options="nolock", rounds=60)
scenario("race for one image", labcases.race, options="soft,timeo=50", rounds=60)
scenario("hand-over, O_DIRECT", labcases.handover, rounds=200, direct=True, limit=600)
scenario("hand-over, buffered", labcases.handover, rounds=200, direct=False, limit=600)
scenario("hand-over, buffered", labcases.handover, ("3",), options="nolock", rounds=30, direct=False)
scenario("hand-over, qemu-io cache=none", labcases.handover_qemu, rounds=10, cache="none")
scenario("hand-over, qemu-io cache=writeback", labcases.handover_qemu, rounds=10, cache="writeback")
scenario("reader on the other host", labcases.reader)
scenario("reader on the other host", labcases.reader, options="noac")
scenario("resize seen on the other host", labcases.resize)
scenario("names of a held image", labcases.names)
scenario("a reader that wants no writer", labcases.reads_alone)
scenario("files of a backing chain", labcases.chain)
scenario("other formats", labcases.formats, limit=900)
scenario("replaced behind the cache", labcases.replaced)
scenario("mtime of a restored image", labcases.mtimes)
scenario("raw disk of any name", labcases.byte_101)
scenario("manager's handle", labcases.manager)
for seconds in (0, 1):
    scenario("names seen within %d s" % seconds, labcases.names_seen, options="noac,lookupcache=none", timeout=seconds)
for seconds in (0, 1, 600):
    scenario("names kept for %d s and opens" % seconds, labcases.names_opened, timeout=seconds, limit=600)
scenario("power cut of the holder, its own recovery", labcases.killed, repair="reboot", pass_reboot=True)
scenario("power cut of the holder, fsck on another host", labcases.killed, ("4.2",), repair="fsck", pass_reboot=True)

if __name__ == "__main__":
    labhost.suite_main(suite)
