"""Three nodes in network namespaces, the rig itself in a fourth: cuts by nft, signals; load with a full history; the checker."""

import asyncio, collections, json, os, random, shutil, signal, subprocess, sys, threading, time
from wire import *

BIN = os.environ.get('TIDELOG', 'target/release/tidelog')
# Data, logs and file systems of the runs.
ROOT = os.environ.get('CHAOS_DIR', '/tmp/tidelog-chaos')


def sh(c, check=True):
    return subprocess.run(c, shell=True, check=check, capture_output=True, text=True)


def up(prefix, n=3, net='10.79.0'):
    """Namespaces PREFIX0 (rig and bridge) and PREFIX1..n."""
    down(prefix, n)
    sh(
        f'ip netns add {prefix}0; ip -n {prefix}0 link set lo up; ip -n {prefix}0 link add br0 type bridge; ip -n {prefix}0 addr add {net}.254/24 dev br0; ip -n {prefix}0 link set br0 up'
    )
    for i in range(1, n + 1):
        sh(
            f'ip netns add {prefix}{i} && ip -n {prefix}0 link add v{i} type veth peer name eth0 netns {prefix}{i} && ip -n {prefix}0 link set v{i} master br0 up && '
            f'ip -n {prefix}{i} addr add {net}.{i}/24 dev eth0 && ip -n {prefix}{i} link set eth0 up && ip -n {prefix}{i} link set lo up && '
            f"ip netns exec {prefix}{i} nft 'add table inet f; add chain inet f in {{ type filter hook input priority 0; }}; add chain inet f out {{ type filter hook output priority 0; }}'"
        )


def down(prefix, n=3):
    for i in range(n + 1):
        sh(f'ip netns del {prefix}{i}', False)


class Cluster:
    def __init__(
        self,
        prefix,
        root,
        n=3,
        partitions=1,
        extra='',
        port=7100,
        profile='["laptop", "balanced"]',
        net='10.79.0',
        env=None,
        dirs=None,
    ):
        ALL.append(self)
        self.prefix, self.root, self.n, self.net, self.port, self.partitions = prefix, root, n, net, port, partitions
        shutil.rmtree(root, ignore_errors=True)
        os.makedirs(root)
        self.addrs = [(f'{net}.{i+1}', port) for i in range(n)]
        self.procs, self.env = [None] * n, env or [{} for _ in range(n)]
        self.dirs = dirs or [f'{root}/n{i+1}' for i in range(n)]
        mem = ',\n'.join(f'{{ id = {i+1}, address = "{a[0]}:{a[1]}" }}' for i, a in enumerate(self.addrs))
        for i in range(n):
            open(f'{root}/n{i+1}.toml', 'w').write(
                f'profile = {profile}\n[node]\nid = {i+1}\ndata_dir = "{self.dirs[i]}"\n[cluster]\nname = "jepsen"\nnodes = [\n{mem}\n]\npartitions = {partitions}\nreplication = {n}\n{extra}\n'
            )

    def start(self, i, wait=True, timeout=60):
        log = open(f'{self.root}/n{i+1}.log', 'a')
        e = {**os.environ, 'TIDELOG_LOG': os.environ.get('TIDELOG_LOG', 'info'), **self.env[i]}
        p = subprocess.Popen(
            ['nsenter', f'--net=/run/netns/{self.prefix}{i+1}', BIN, 'serve', '--config', f'{self.root}/n{i+1}.toml'],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=e,
        )
        self.procs[i] = p
        p.ready = None

        def rd():
            for line in p.stdout:
                if 'ready' in line:
                    p.ready = time.monotonic()

        threading.Thread(target=rd, daemon=True).start()
        if wait:
            t = time.monotonic()
            while not p.ready and time.monotonic() - t < timeout:
                if p.poll() is not None:
                    raise RuntimeError(f'node {i+1} exit {p.returncode}: ' + self.tail(i))
                time.sleep(0.01)
            if not p.ready:
                raise RuntimeError(f'node {i+1} not ready: ' + self.tail(i))

    def tail(self, i, n=800):
        return open(f'{self.root}/n{i+1}.log').read()[-n:]

    def start_all(self):
        for i in range(self.n):
            self.start(i, False)
        t = time.monotonic()
        while not all(p.ready for p in self.procs):
            time.sleep(0.02)
            if time.monotonic() - t > 60:
                raise RuntimeError('not ready')

    def sig(self, i, s):
        p = self.procs[i]
        if p and p.poll() is None:
            os.kill(p.pid, s)

    def stop(self, i):
        self.sig(i, signal.SIGSTOP)

    def cont(self, i):
        self.sig(i, signal.SIGCONT)

    def kill(self, i):
        self.sig(i, signal.SIGKILL)
        if self.procs[i]:
            self.procs[i].wait()

    def alive(self, i):
        return self.procs[i] is not None and self.procs[i].poll() is None

    def close(self, keep=True):
        if self in ALL:
            ALL.remove(self)
        for i in range(self.n):
            self.cont(i)
            self.kill(i)
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)

    # cuts: drop what node dst receives from node src (0-based; -1 = clients)
    def cut(self, src, dst):
        s = f'{self.net}.{254 if src < 0 else src+1}'
        sh(f"nsenter --net=/run/netns/{self.prefix}{dst+1} nft 'add rule inet f in ip saddr {s} drop'")

    def heal(self, dst=None):
        for d in range(self.n) if dst is None else [dst]:
            sh(f"nsenter --net=/run/netns/{self.prefix}{d+1} nft 'flush chain inet f in; flush chain inet f out'")

    def rss(self, i):
        try:
            for l in open(f'/proc/{self.procs[i].pid}/status'):
                if l.startswith('VmRSS'):
                    return int(l.split()[1]) // 1024
        except Exception:
            return -1

    def fds(self, i):
        try:
            return len(os.listdir(f'/proc/{self.procs[i].pid}/fd'))
        except Exception:
            return -1

    async def leader(self, part=0, timeout=30, among=None):
        """The node that says it leads and has the highest generation, by status."""
        end = now() + timeout
        while now() < end:
            best = None
            for i in among if among is not None else range(self.n):
                try:
                    c = await Conn.open(*self.addrs[i], timeout=0.5)
                    r = await asyncio.wait_for(c.status(), 0.5)
                    c.close()
                    for p in r[1]['partitions']:
                        if p['partition'] == part and p['role'] == 'leader':
                            if best is None or p['generation'] > best[0]:
                                best = (p['generation'], i)
                except Exception:
                    pass
            if best:
                return best[1]
            await asyncio.sleep(0.05)
        raise RuntimeError('no leader')

    async def statuses(self, timeout=2):
        out = []
        for i in range(self.n):
            try:
                c = await Conn.open(*self.addrs[i], timeout=timeout)
                r = await asyncio.wait_for(c.status(), timeout)
                c.close()
                out.append(r[1])
            except Exception as e:
                out.append(None)
        return out


import atexit

ALL = []
atexit.register(lambda: [c.close() for c in ALL])


class History:
    """ops: dicts kind(append|read), part, inv, ret, outcome, index, payload; reads: hw, recs(list of (index,payload-hash))."""

    def __init__(self):
        self.appends = []
        self.reads = []
        self.k = 0
        self.acks = collections.defaultdict(list)
        self.noread = 0

    def payload(self, tag, size):
        self.k += 1
        return (f'{tag}:{self.k}:' + 'x' * size)[: max(size, 16 + len(tag))].encode()


class Load:
    def __init__(
        self,
        cl,
        hist,
        appenders=4,
        sessions=2,
        readers=2,
        local_readers=0,
        pinned=False,
        size=100,
        rate=None,
        timeout=5,
        link_timeout=2.0,
    ):
        self.cl, self.h, self.stop, self.tasks = cl, hist, False, []
        self.size, self.rate, self.timeout, self.lt = size, rate, timeout, link_timeout
        for p in range(cl.partitions):
            for k in range(appenders):
                self.tasks.append(asyncio.ensure_future(self.appender(p, f'p{p}a{k}')))
            for k in range(sessions):
                self.tasks.append(asyncio.ensure_future(self.sess(p, f'p{p}s{k}')))
            for k in range(readers):
                self.tasks.append(asyncio.ensure_future(self.reader(p, f'p{p}r{k}')))
            if local_readers:
                for i in range(cl.n):
                    self.tasks.append(asyncio.ensure_future(self.local(p, i)))
            if pinned:
                for i in range(cl.n):
                    self.tasks.append(asyncio.ensure_future(self.pin_read(p, i)))
                    self.tasks.append(asyncio.ensure_future(self.pin_append(p, i, f'p{p}q{i}')))

    async def pace(self):
        if self.rate:
            await asyncio.sleep(1 / self.rate * random.uniform(0.5, 1.5))
        else:
            await asyncio.sleep(0)

    def note(self, p, tag, pay, inv, r, node=None, seq=0):
        ret = now()
        self.h.appends.append((p, tag, pay, inv, ret if r[0] == 'acked' else None, r[0], r[1], r[2], node, ret, seq))
        if r[0] == 'acked':
            self.h.acks[p].append(ret)

    async def appender(self, p, tag):
        c = Client(self.cl.addrs, self.lt)
        while not self.stop:
            pay = self.h.payload(tag, self.size)
            inv = now()
            r = await c.append(p, pay, self.timeout)
            self.note(p, tag, pay, inv, r)
            await self.pace()
        c.close()

    async def sess(self, p, tag):
        c = Client(self.cl.addrs, self.lt)
        sid = await c.open_session(p, random.getrandbits(127) | 1, 120)
        seq = 0
        while not self.stop:
            seq += 1
            pay = self.h.payload(tag, self.size)
            inv = now()
            while True:
                r = await c.append(p, pay, self.timeout, sid, seq)
                if r[0] == 'acked' or self.stop or r[0].startswith('failed:'):
                    break
            self.note(p, tag, pay, inv, r, seq=seq)
            if r[0].startswith('failed:'):
                print('SESSION', tag, seq, r, flush=True)
                break
            await self.pace()
        c.close()

    async def reader(self, p, tag):
        c = Client(self.cl.addrs, self.lt)
        frm = 1
        while not self.stop:
            inv = now()
            r = await c.read(p, frm, 0, self.timeout)
            if r and r[0] == 'records':
                frm = self.got(p, inv, r, 'lin', None)
            elif r and r[0] not in ('ahead',):
                print('READ', tag, r[:3], flush=True)
            await asyncio.sleep(0.01)
        c.close()

    def got(self, p, inv, r, level, node, frm=None):
        recs = records(r[4])
        self.h.reads.append((p, inv, now(), r[2], r[1], level, node, [(x[1], x[2], crc(x[3])) for x in recs]))
        return max(r[1], 1)

    async def local(self, p, i):
        frm = 1
        c = None
        while not self.stop:
            try:
                if c is None or c.dead:
                    c = await Conn.open(*self.cl.addrs[i], timeout=1)
                inv = now()
                r = await asyncio.wait_for(c.read(p, frm, 0, 1 << 20, 1), 5)
                if r[0] == 'records':
                    frm = self.got(p, inv, r, 'local', i)
                elif r[0] == 'ahead':
                    self.h.noread += 1
            except Exception:
                if c:
                    c.close()
                    c = None
            await asyncio.sleep(0.05)

    async def pin_read(self, p, i):
        """Linearizable reads always of node i, pipelined, waiting for minutes: what does a node answer that slept?"""
        c = None

        async def one(c, frm):
            inv = now()
            try:
                r = await asyncio.wait_for(c.read(p, frm, 0, 4096, 0), 90)
            except Exception:
                return
            if r[0] == 'records':
                self.got(p, inv, r, 'lin', i)
            else:
                self.h.noread += 1

        ts = set()
        while not self.stop:
            try:
                if c is None or c.dead:
                    c = await Conn.open(*self.cl.addrs[i], timeout=1)
                if len(c.pend) < 200:
                    frm = max([1] + [self.last.get(p, 1)])
                    t = asyncio.ensure_future(one(c, frm))
                    ts.add(t)
                    t.add_done_callback(ts.discard)
            except Exception:
                pass
            await asyncio.sleep(0.02)
        if c:
            c.close()

    async def pin_append(self, p, i, tag):
        c = None
        ts = set()

        async def one(c):
            pay = self.h.payload(tag, self.size)
            inv = now()
            try:
                r = await asyncio.wait_for(c.append(p, pay), 90)
                r = (
                    ('acked', r[1], r[2])
                    if r[0] == 'appended'
                    else (('unknown' if r[0] == 'unknown' else 'failed:' + r[0]), 0, 0)
                )
            except Exception:
                r = ('unknown', 0, 0)
            self.note(p, tag, pay, inv, r, i)

        while not self.stop:
            try:
                if c is None or c.dead:
                    c = await Conn.open(*self.cl.addrs[i], timeout=1)
                if len(c.pend) < 200:
                    t = asyncio.ensure_future(one(c))
                    ts.add(t)
                    t.add_done_callback(ts.discard)
            except Exception:
                pass
            await asyncio.sleep(0.02)
        if c:
            c.close()

    @property
    def last(self):
        out = {}
        for p in range(self.cl.partitions):
            a = self.h.appends
            for x in reversed(a[-50:]):
                if x[0] == p and x[5] == 'acked':
                    out[p] = max(1, x[6] - 5)
                    break
        return out

    async def finish(self, patience=20):
        self.stop = True
        done, pend = await asyncio.wait(self.tasks, timeout=patience)
        for t in pend:
            t.cancel()
        await asyncio.sleep(0.1)


async def final_log(cl, p, level=0, node=None):
    """The whole partition: from the leader (linearizable) or from a node (local)."""
    out, frm = {}, 1
    c = Client([cl.addrs[node]] if node is not None else cl.addrs, 10)
    hw = None
    while True:
        r = await c.read(p, frm, level if node is None else 1, 60, 2 << 20)
        if not r or r[0] != 'records':
            raise RuntimeError(f'final read of {p} from {frm} node {node}: {r and r[:3]}')
        for k, idx, gen, pay, a, b in records(r[4]):
            out[idx] = (k, gen, pay, a, b)
        if hw is None or True:
            hw = r[2]
        if r[1] > hw:
            break
        if r[1] == frm and not r[4]:
            break
        frm = r[1]
    c.close()
    return out, hw


async def caught_up(cl, timeout=60):
    t = now()
    while now() - t < timeout:
        st = await cl.statuses()
        if all(st):
            m = collections.defaultdict(set)
            for s in st:
                for p in s['partitions']:
                    m[p['partition']].add(p['high_water'])
            if all(len(v) == 1 for v in m.values()):
                return now() - t
        await asyncio.sleep(0.1)
    return None


async def check(cl, h, label=''):
    """All violations as text."""
    bad = []
    V = lambda s: bad.append(s) if len(bad) < 60 else None
    tot = collections.Counter(a[5].split(':')[0] for a in h.appends)
    reads = collections.Counter(r[5] for r in h.reads)
    cu = await caught_up(cl)
    if cu is None:
        V('nodes did not catch up in 60 s')
    for p in range(cl.partitions):
        log, hw = await final_log(cl, p)
        for i in range(cl.n):
            try:
                l2, _ = await final_log(cl, p, 1, i)
                for k in set(log) | set(l2):
                    if k <= hw and log.get(k) != l2.get(k):
                        V(f'p{p} node {i+1} index {k} differs')
                        break
            except Exception as e:
                V(f'p{p} node {i+1} not read: {e}')
        at = collections.defaultdict(list)
        for idx, (k, gen, pay, a, b) in log.items():
            if k == 2:
                at[pay].append(idx)
        if sorted(log) != list(range(1, len(log) + 1)):
            V(f'p{p}: indexes not dense: {min(log)}..{max(log)} n={len(log)}')
        iv = []  # (inv, ret or inf, index)
        used = {}
        for pp, tag, pay, inv, ret, out, idx, gen, node, done, seq in h.appends:
            if pp != p:
                continue
            where = at.get(pay, [])
            if len(where) > 1:
                V(f'p{p}: {pay[:24]} {len(where)} times in the log: {where} outcome {out} seq {seq}')
            if out == 'acked':
                if idx in used:
                    V(f'p{p} index {idx} acked twice {used[idx]} {pay[:20]}')
                used[idx] = pay[:20]
                if where != [idx]:
                    V(f'p{p} LOST acked {pay[:24]} at {idx}: log has it at {where}')
                elif log[idx][1] != gen:
                    V(f'p{p} generation of {idx}: acked {gen} log {log[idx][1]}')
            elif out.startswith('failed') and where:
                V(f'p{p} {pay[:24]} {out} but at {where}')
            for w in where:
                iv.append((inv, ret if ret else float('inf'), w))
        # real time: A.ret < B.inv  =>  idxA < idxB
        iv.sort()
        rets = sorted((r, x) for _, r, x in iv if r != float('inf'))
        j = 0
        mx = 0
        for inv, ret, x in iv:
            while j < len(rets) and rets[j][0] < inv:
                mx = max(mx, rets[j][1])
                j += 1
            if x < mx:
                V(f'p{p} REALTIME index {x} invoked at {inv:.3f} after {mx} was acked')
        # reads
        rr = sorted(r for r in h.reads if r[0] == p)
        j = 0
        mx = 0
        invs = sorted((i, x) for i, _, x in iv)
        rret = sorted((r[2], r[3], r[5]) for r in rr if r[5] == 'lin')
        k = 0
        mr = 0
        j = 0
        for pp, inv, ret, rhw, nxt, level, node, recs in rr:
            while j < len(rets) and rets[j][0] < inv:
                mx = max(mx, rets[j][1])
                j += 1
            while k < len(rret) and rret[k][0] < inv:
                mr = max(mr, rret[k][1])
                k += 1
            if level == 'lin':
                if rhw < mx:
                    V(f'p{p} STALE READ node {node} hw {rhw} but {mx} was acked before (inv {inv:.3f} ret {ret:.3f})')
                if rhw < mr:
                    V(f'p{p} NON-MONOTONIC READ node {node} hw {rhw} < {mr} seen before')
            if rhw > hw:
                V(f'p{p} read saw hw {rhw} beyond the final {hw}')
            for idx, gen, c in recs:
                e = log.get(idx)
                if e is None or e[1] != gen or crc(e[2]) != c:
                    V(f'p{p} read ({level}, node {node}) had index {idx} gen {gen}, final {e and e[1]}: NOT A PREFIX')
                    break
        # a read must not have seen what was invoked after it returned
        future = sorted((x, i) for i, _, x in iv)
        import bisect

        xs = [x for x, _ in future]
        suffix = [float('inf')] * (len(future) + 1)
        pre = []
        m = -1
        for x, i in future:
            m = max(m, i)
            pre.append(m)
        for (pp, inv, ret, rhw, *_r) in rr:
            q = bisect.bisect_right(xs, rhw) - 1
            if q >= 0 and pre[q] > ret:
                V(f'p{p} read returned before index <= {rhw} was invoked')
    print(
        f'{label}: appends {dict(tot)} reads {dict(reads)} caught up after {cu if cu is None else round(cu,2)} s  VIOLATIONS {len(bad)}',
        flush=True,
    )
    for b in bad[:25]:
        print('   ', b, flush=True)
    return bad, tot, reads


def gaps(acks, t0, t1):
    """Longest time without an ack in [t0,t1], and first ack after t0."""
    a = [t for t in acks if t0 <= t <= t1]
    pts = [t0] + a + [t1]
    return max(y - x for x, y in zip(pts, pts[1:])), (a[0] - t0 if a else None)


def pct(v, q):
    v = sorted(v)
    return v[min(len(v) - 1, int(q * len(v)))] if v else None
