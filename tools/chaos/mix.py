"""The mix: nodes killed, stopped and cut off, disks frozen, under load, for SECONDS; then the history is judged.

mix.py PREFIX NET SECONDS SEED     (namespaces by netup.py; runs in the namespace PREFIX0)

Each node has a file system of its own (ext4 in a file, by loop device), which `fsfreeze` stops without an error. Judged are the history (rig.check),
every gap between acknowledgements, and the memory of every process. A gap counts as far as a majority was well: two nodes that run, whose disks
take writes, connected to each other and to the clients.
"""

import sys
from rig import *

PFX, NET, SECS, SEED = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
GAP_MAX = 5.0
# `limits.client_bytes` and `limits.peer_bytes` of the profile, the log's batches and cache, two peers' lanes, and the program itself.
RSS_MAX_MIB = 420
MOUNTS = f'{ROOT}/mix-{PFX}'


def mount_all():
    """A file system for each node."""
    unmount_all()
    for i in (1, 2, 3):
        os.makedirs(f'{MOUNTS}/{i}', exist_ok=True)
        image = f'{MOUNTS}/{i}.img'
        sh(f'rm -f {image}; truncate -s 2G {image}; mkfs.ext4 -q {image}; mount -o loop {image} {MOUNTS}/{i}')


def unmount_all():
    for i in (1, 2, 3):
        sh(f'fsfreeze -u {MOUNTS}/{i}; umount {MOUNTS}/{i}', False)


class Well:
    """What is the matter with each node, and since when a majority has been well."""

    def __init__(self, n):
        self.n = n
        self.out = [collections.Counter() for _ in range(n)]  # reasons
        self.cuts = set()  # (from, to), -1: the clients
        self.spans = []  # [from, to] in which a majority was well
        self.since = None
        self.changes = []
        self.look()

    def majority(self):
        well = [i for i in range(self.n) if not self.out[i] and (-1, i) not in self.cuts]
        pairs = [(a, b) for a in well for b in well if a < b]
        return any((a, b) not in self.cuts and (b, a) not in self.cuts for a, b in pairs)

    def look(self):
        t = now()
        self.changes.append(t)
        if self.majority():
            self.since = self.since or t
        elif self.since:
            self.spans.append((self.since, t))
            self.since = None

    def add(self, i, why):
        self.out[i][why] += 1
        self.look()

    def remove(self, i, why):
        self.out[i][why] -= 1
        if self.out[i][why] <= 0:
            del self.out[i][why]
        self.look()

    def close(self):
        if self.since:
            self.spans.append((self.since, now()))
            self.since = None


async def main():
    rng = random.Random(SEED)
    mount_all()
    dirs = [f'{MOUNTS}/{i}/d' for i in (1, 2, 3)]
    extra = '[wal]\nsegment_size="16MiB"\n[retention]\nbytes="256MiB"\n'
    cl = Cluster(PFX, f'{ROOT}/data/mix-{SEED}', net=NET, partitions=2, extra=extra, dirs=dirs)
    cl.start_all()
    await cl.leader()
    h = History()
    ld = Load(cl, h, 3, 2, 2, 1, True, rate=25, link_timeout=0.7)
    began, end = now(), now() + SECS
    n, well, frozen = collections.Counter(), Well(3), set()
    rss = [0, 0, 0]

    async def ready(i):
        """A node that was started is well when it serves."""
        p = cl.procs[i]
        while cl.procs[i] is p and not p.ready and p.poll() is None:
            await asyncio.sleep(0.02)
        well.remove(i, 'down')

    async def killer():
        while now() < end:
            await asyncio.sleep(rng.uniform(0.5, 5))
            i = rng.randrange(3)
            # A process with writes in a frozen file system does not end before the thaw.
            if not cl.alive(i) or i in frozen:
                continue
            n['kill'] += 1
            well.add(i, 'down')
            cl.kill(i)
            await asyncio.sleep(rng.choice([0, 0.1, 1, 3]))
            cl.start(i, False)
            asyncio.ensure_future(ready(i))

    async def stopper():
        while now() < end:
            await asyncio.sleep(rng.uniform(0.5, 5))
            i = rng.randrange(3)
            n['stop'] += 1
            well.add(i, 'stopped')
            cl.stop(i)
            await asyncio.sleep(rng.choice([0.2, 0.6, 1.5, 5]))
            cl.cont(i)
            well.remove(i, 'stopped')

    async def freezer():
        while now() < end:
            await asyncio.sleep(rng.uniform(2, 8))
            i = rng.randrange(3)
            n['freeze'] += 1
            well.add(i, 'frozen')
            frozen.add(i)
            await asyncio.to_thread(sh, f'fsfreeze -f {MOUNTS}/{i + 1}', False)
            await asyncio.sleep(rng.choice([0.5, 2, 6, 15]))
            await asyncio.to_thread(sh, f'fsfreeze -u {MOUNTS}/{i + 1}', False)
            frozen.discard(i)
            well.remove(i, 'frozen')

    async def cutter():
        while now() < end:
            await asyncio.sleep(rng.uniform(0.3, 4))
            k = rng.random()
            n['cut'] += 1
            if k < 0.5:
                cuts = [tuple(rng.sample(range(3), 2))]
            elif k < 0.8:
                a = rng.randrange(3)
                cuts = [c for b in range(3) if b != a for c in ((a, b), (b, a))]
            else:
                cuts = [(-1, rng.randrange(3))]
            well.cuts.update(cuts)
            well.look()
            for a, b in cuts:
                cl.cut(a, b)
            await asyncio.sleep(rng.uniform(0.1, 5))
            cl.heal()
            well.cuts.clear()
            well.look()

    crashed = []

    async def watcher():
        while now() < end:
            for i in range(3):
                rss[i] = max(rss[i], cl.rss(i) or 0)
                p = cl.procs[i]
                if p and p.poll() not in (None, -9) and p not in crashed:
                    crashed.append(p)
                    print(f'node {i + 1} ENDED BY ITSELF {p.returncode}: {cl.tail(i)}', flush=True)
                    cl.start(i, False)
            await asyncio.sleep(0.2)

    try:
        await asyncio.gather(killer(), stopper(), freezer(), cutter(), watcher())
        for i in range(3):
            cl.cont(i)
        cl.heal()
        for i in range(3):
            if not cl.alive(i):
                cl.start(i, False)
        t = now()
        n0 = {p: len(h.acks[p]) for p in range(2)}
        while not all(len(h.acks[p]) > n0[p] + 20 for p in range(2)) and now() - t < 60:
            await asyncio.sleep(0.05)
        print(f'faults {dict(n)}; acks again {now() - t:.2f} s after the end; ended by themselves {len(crashed)}', flush=True)
        well.close()
        took = now() - began
        await asyncio.sleep(3)
        await ld.finish()
        bad, _, _ = await check(cl, h, f'mix seed {SEED}')
        failed = len(bad) + len(crashed)
        span = sum(b - a for a, b in well.spans)
        print(f'a majority was well for {span:.0f} s of {took:.0f}; resident memory at most {rss} MiB, budget {RSS_MAX_MIB}')
        failed += sum(r > RSS_MAX_MIB for r in rss)
        for p in range(2):
            acks = sorted(h.acks[p])
            over = []
            for x, y in zip(acks, acks[1:]):
                for a, b in well.spans:
                    lo, hi = max(x, a), min(y, b)
                    if hi - lo > GAP_MAX:
                        calm = [c for c in well.changes if lo < c < hi]
                        over.append((round(lo - began, 1), round(hi - lo, 2), len(calm)))
            longest = sorted((y - x for x, y in zip(acks, acks[1:])), reverse=True)[:5]
            print(
                f'partition {p}: longest gaps {[round(g, 2) for g in longest]}; over {GAP_MAX} s with a majority well (at, long, changes within): {over}',
                flush=True,
            )
            failed += len(over)
        cl.close()
    finally:
        for i in range(3):
            sh(f'fsfreeze -u {MOUNTS}/{i + 1}', False)
    for i in range(3):
        r = subprocess.run([BIN, 'wal', 'verify', cl.dirs[i]], capture_output=True, text=True)
        print('wal verify', i + 1, 'exit code', r.returncode, r.stdout.strip().splitlines()[-1:])
        failed += r.returncode != 0
    print('PASS' if failed == 0 else f'FAILED: {failed}')
    unmount_all()
    return failed


sys.exit(1 if asyncio.run(main()) else 0)
