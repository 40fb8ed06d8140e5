# SPDX-License-Identifier: MIT
"""Programs that have nothing to do with the network behave the same when preloaded: output, exit code, files."""

import shutil

import pytest

from harness import PROGRAMS, SERVER, Bench, Combo

# name → (shell script, exit code). Run in an empty directory; everything it prints must be the same every time.
SCRIPTS = {
    "bash": (
        """
        set -e
        for i in $(seq 1 30); do echo "line $i"; done | sort -r | head -5
        f() { return $1; }
        f 3 || echo "f gave $?"
        echo data > file; cat < file; wc -c file
        (exec 7>fd7; echo seven >&7); cat fd7
        diff <(echo a) <(echo b) || true
        sleep 0.01 & wait $!; echo "waited $?"
        cat <<< here; printf '%s\\n' "${BASH##*/}"
        trap 'echo trapped; exit 9' TERM; kill -TERM $$
        """,
        9,
    ),
    "coproc": (
        """
        coproc cat; echo through >&${COPROC[1]}; read -r line <&${COPROC[0]}; echo "$line"
        ls /proc/self/fd | wc -l
        exec 3<>/dev/null; echo 3 is open >&3; ls -l /proc/$$/fd/3 | sed 's/.*-> //'
        """,
        0,
    ),
    "gcc": (
        """
        printf '#include <stdio.h>\\nint main(void) { printf("hello from C\\\\n"); return 5; }\\n' > a.c
        gcc -O1 -Wall -o a a.c && ./a; code=$?
        printf 'int main(void) { return undeclared; }\\n' > b.c
        gcc b.c -o b 2> errors; echo "bad code gives $?"; grep -c undeclared errors
        exit $code
        """,
        5,
    ),
    "git": (
        """
        set -e
        export GIT_AUTHOR_DATE='2026-01-01 00:00:00 +0000' GIT_COMMITTER_DATE='2026-01-01 00:00:00 +0000'
        git -c init.defaultBranch=main init repo; cd repo
        git config user.name t; git config user.email t@example.com; git config gc.auto 0
        for i in 1 2 3; do echo "$i" > "file$i"; git add .; git commit -q -m "commit $i"; done
        git log --stat --format='%H %s'; git gc -q; git fsck --no-progress
        cd ..; git clone -q repo copy; git -C copy log --oneline
        """,
        0,
    ),
    "python": (
        """
        /usr/bin/python3 -c "
import concurrent.futures, hashlib, multiprocessing, os, select, socket, subprocess, sys, tempfile, threading
print(hashlib.sha256(b'x').hexdigest(), sum(range(1000)))
print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)
a, b = socket.socketpair(); a.send(b'unix'); print(b.recv(10))
p = select.epoll(); p.register(b, select.EPOLLIN); print(p.poll(0)); a.send(b'y'); print([e for _, e in p.poll(1)])
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); u.sendto(b'udp', u.getsockname()); print(u.recv(10))
with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2, 3]))
with concurrent.futures.ThreadPoolExecutor(3) as e: print(list(e.map(abs, [-4, 5])))
r, w = os.pipe(); print(os.write(w, b'abc'), os.read(r, 2), os.dup2(r, 200), os.read(200, 5), r, w)
os.closerange(100, 300)
sys.exit(4)"
        """,
        4,
    ),
    "tar": (
        """
        set -e
        mkdir d; for i in $(seq 1 200); do echo "$i" > d/$i; done
        tar --sort=name --mtime='2026-01-01' --owner=0 --group=0 --numeric-owner -czf d.tgz d
        tar -tzf d.tgz | sort | md5sum; mkdir x; tar -C x -xzf d.tgz; diff -r d x/d && echo same
        tar -cf - d | tar -tf - | wc -l
        tar -xf missing.tar
        """,
        2,
    ),
    "perl_awk_find": (
        """
        perl -e 'open(my $f, "-|", "echo from perl") or die; print <$f>; fork or exit 0; wait; print "status $?\\n"'
        awk 'BEGIN { "echo from awk" | getline x; print x; exit 6 }'; echo $?
        mkdir -p p/q; touch p/q/f; find p | sort; xargs -n1 -P2 echo <<< '1 1 1'
        """,
        0,
    ),
    "closed_stdio": ("exec 0<&- 2>&-; ls /proc/self/fd | tr '\\n' ' '; echo", 0),
    "no_files_left": ("ulimit -n 4; exec /bin/cat /etc/debian_version", 0),
    "environment": ("env -i /bin/echo clean; LD_PRELOAD= /bin/echo off; env | grep -c ^PATH=", 0),
}


def run_script(bench: Bench, name: str, directory) -> tuple:
    script, code = SCRIPTS[name]
    directory.mkdir()
    proc = bench.start(["/bin/bash", "-c", script], SERVER, cwd=directory, name=f"{name}-{bench.combo.value}")
    got = proc.wait(60)
    return got, proc.stdout(), proc.stderr(), code


@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
@pytest.mark.parametrize("name", SCRIPTS)
def test_same_as_plain(bench, name):
    """Once plainly and once as the combination says (`neither` shows that the script itself always prints the same)."""
    work = bench.dir / "work"
    combo, bench.combo = bench.combo, Combo.NEITHER
    plain = run_script(bench, name, work)
    assert plain[0] == plain[3], f"the script itself failed\n{bench.all_output()}"
    shutil.rmtree(work)
    bench.combo = combo
    again = run_script(bench, name, work)
    assert again[0] == plain[0], f"exit code {again[0]}, plain {plain[0]}\n{bench.all_output()}"
    assert again[1] == plain[1], bench.all_output()
    assert again[2] == plain[2], bench.all_output()
    if combo is Combo.BOTH:
        bench.assert_not_used(SERVER)
        bench.assert_gates()


@pytest.mark.no_ring
@pytest.mark.parametrize("combo", [Combo.NEITHER, Combo.BOTH], ids=lambda c: c.value)
def test_edges(bench):
    """Bad pointers and lengths, and the default action of SIGSEGV (tests/programs/edges.cc)."""
    proc = bench.start([PROGRAMS / "edges"], SERVER, name=f"edges-{bench.combo.value}")
    assert proc.wait(20) == 0, bench.all_output()
    if bench.combo is Combo.BOTH:
        bench.assert_not_used(SERVER)
