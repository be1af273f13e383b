"""Tidelog wire protocol in Python, written from docs/formats/wire.md: frames, an asyncio client with a history."""

import asyncio, json, os, random, struct, time
import google_crc32c

crc = google_crc32c.value
HDR = struct.Struct('<4sBBHIIIQQQQQ')
now = time.monotonic


def frame(kind, f=(0, 0, 0, 0, 0), meta=b'', payload=b'', version=1, flags=0):
    m = meta + b'\0' * (-len(meta) % 64)
    body = HDR.pack(b'TIDW', version, kind, flags, len(meta), crc(m) if m else 0, len(payload), *f)
    return struct.pack('<I', crc(body)) + body + m + payload + b'\0' * (-len(payload) % 64)


def parse_header(h):
    magic, ver, kind, flags, ml, mc, pl, f0, f1, f2, f3, f4 = HDR.unpack(h[4:64])
    assert magic == b'TIDW', h[:16]
    return kind, ml, pl, (f0, f1, f2, f3, f4)


KEEPALIVE = frame(3)
CODES = {
    1: 'appended',
    2: 'opened',
    3: 'snap',
    16: 'notleader',
    17: 'busy',
    18: 'fenced',
    19: 'truncated',
    20: 'unknown',
    21: 'expired',
    22: 'gap',
    23: 'old',
    24: 'toolarge',
    25: 'crc',
    26: 'nopart',
    27: 'ahead',
    28: 'unavailable',
    29: 'invalid',
}


def records(buf):
    """Records of a Records frame: (kind, index, generation, payload, session, seq)."""
    out, p = [], 0
    while p < len(buf):
        _, _, plen, kind, ver, flags, part, idx, gen, prev, ts, cl, _ = struct.unpack_from('<IIIBBHQQQQQII', buf, p)
        q = p + 64
        a = b = 0
        if flags & 1:
            a, b = struct.unpack_from('<QQ', buf, q)
            q += 64
        out.append((kind, idx, gen, bytes(buf[q : q + plen]), a, b))
        p = (q + plen + 63) // 64 * 64
    return out


class Gone(Exception):
    pass


class Conn:
    """One client connection: call(kind, fields, payload) -> ('records', fields, recs) or (code, a, b, extra) or Gone."""

    def __init__(self):
        self.pend = {}
        self.n = 0
        self.dead = False
        self.last_rx = now()

    @classmethod
    async def open(cls, host, port, timeout=2, cluster=b''):
        c = cls()
        c.r, c.w = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
        c.w.write(frame(16, meta=cluster))
        try:
            h = await asyncio.wait_for(c.r.readexactly(64), timeout)
            kind, ml, pl, f = parse_header(h)
            meta = await asyncio.wait_for(c.r.readexactly((ml + 63) // 64 * 64), timeout) if ml else b''
        except BaseException:
            c.w.close()
            raise
        if kind != 17:
            c.w.close()
            raise ConnectionError(f'refused {f[0]}: {meta[:ml]!r}')
        c.hello = f
        c.task = asyncio.ensure_future(c._rx())
        return c

    async def _rx(self):
        why = 'closed'
        try:
            while True:
                h = await self.r.readexactly(64)
                self.last_rx = now()
                kind, ml, pl, f = parse_header(h)
                meta = await self.r.readexactly((ml + 63) // 64 * 64) if ml else b''
                pay = await self.r.readexactly((pl + 63) // 64 * 64) if pl else b''
                if kind == 48:
                    p = 0
                    while p < ml:
                        req, code, x, a, b = struct.unpack_from('<QB3xIQQ', meta, p)
                        ex = meta[p + 32 : p + 32 + x]
                        p += 32 + (x + 7) // 8 * 8
                        fut = self.pend.pop(req, None)
                        if fut and not fut.done():
                            fut.set_result((CODES[code], a, b, bytes(ex)))
                elif kind == 49:
                    fut = self.pend.pop(f[0], None)
                    if fut and not fut.done():
                        fut.set_result(('records', f[1], f[2], f[3], pay[:pl]))
                elif kind == 50:
                    fut = self.pend.pop(f[0], None)
                    if fut and not fut.done():
                        fut.set_result(('status', json.loads(meta[:ml])))
                elif kind == 2:
                    why = f'refused {f[0]} {meta[:ml]!r}'
                    break
        except Exception as e:
            why = repr(e)
        self.close(why)

    def close(self, why='closed'):
        self.dead = True
        try:
            self.w.close()
        except Exception:
            pass
        for fut in self.pend.values():
            if not fut.done():
                fut.set_exception(Gone(why))
                fut.exception()
        self.pend.clear()

    def send(self, kind, f1=0, f2=0, f3=0, f4=0, payload=b''):
        self.n += 1
        fut = asyncio.get_event_loop().create_future()
        if self.dead:
            fut.set_exception(Gone('dead'))
            fut.exception()
            return fut
        self.pend[self.n] = fut
        self.w.write(frame(kind, (self.n, f1, f2, f3, f4), payload=payload))
        return fut

    def append(self, part, payload, session=0, seq=0):
        return self.send(32, part, session, seq, crc(payload), payload)

    def open_session(self, part, key):
        return self.send(33, part, key & (2**64 - 1), key >> 64)

    def read(self, part, frm, to=0, most=1 << 20, level=0):
        return self.send(34, part, frm, to, most | level << 32)

    def status(self):
        return self.send(35)


class Client:
    """Follows leaders. append() -> (outcome, index, generation); outcome: acked, unknown, failed."""

    def __init__(self, addrs, link_timeout=2.0):
        self.addrs = list(addrs)
        self.conns = {}
        self.lead = {}
        self.link_timeout = link_timeout

    async def conn(self, a):
        c = self.conns.get(a)
        if c is None or c.dead:
            c = self.conns[a] = await Conn.open(*a, timeout=1)
        return c

    def drop(self, a):
        c = self.conns.pop(a, None)
        if c:
            c.close('dropped')

    async def call(self, part, mk, timeout, retry_ambiguous):
        """mk(conn)->future. Returns (answer or None, ambiguous)."""
        end, amb, back = now() + timeout, False, 0.005
        while now() < end:
            a = self.lead.get(part) or random.choice(self.addrs)
            try:
                c = await self.conn(a)
            except Exception:
                self.lead.pop(part, None)
                await asyncio.sleep(min(back, 0.1))
                back *= 2
                continue
            fut = mk(c)
            try:
                r = await self.wait(c, fut, end)
            except (Gone, asyncio.TimeoutError):
                amb = True
                self.drop(a)
                self.lead.pop(part, None)
                if not retry_ambiguous:
                    return None, True
                continue
            if r[0] == 'notleader':
                hint = r[3].decode()
                h = tuple(hint.rsplit(':', 1)) if hint else None
                h = (h[0], int(h[1])) if h else None
                if h and h != a:
                    self.lead[part] = h
                    back = max(back, 0.01)
                    await asyncio.sleep(0.001 if back < 0.05 else 0.02)
                else:
                    self.lead.pop(part, None)
                    await asyncio.sleep(min(back, 0.1))
                back *= 1.5
                continue
            if r[0] in ('busy', 'unavailable', 'fenced'):
                if r[0] != 'busy':
                    self.lead.pop(part, None)
                await asyncio.sleep(min(max(back, r[1] / 1e6 if r[0] == 'busy' else 0), 0.2))
                back *= 2
                continue
            if r[0] == 'unknown':
                amb = True
                self.lead.pop(part, None)
                if not retry_ambiguous:
                    return None, True
                await asyncio.sleep(min(back, 0.1))
                back *= 2
                continue
            self.lead[part] = a
            return r, amb
        return None, amb

    async def wait(self, c, fut, end):
        """Until answered; a link that is silent for link_timeout is given up (nodes send keepalives to those who wait)."""
        while True:
            d = min(self.link_timeout, end - now())
            if d <= 0:
                raise asyncio.TimeoutError
            done, _ = await asyncio.wait([fut], timeout=d)
            if done:
                return fut.result()
            if now() >= end or now() - c.last_rx >= self.link_timeout:
                raise asyncio.TimeoutError

    async def append(self, part, payload, timeout=5, session=0, seq=0):
        r, amb = await self.call(part, lambda c: c.append(part, payload, session, seq), timeout, bool(session))
        if r and r[0] == 'appended':
            return 'acked', r[1], r[2]
        if r:
            return ('unknown' if amb else 'failed:' + r[0]), r[1], r[2]
        return ('unknown' if amb else 'failed'), 0, 0

    async def open_session(self, part, key, timeout=30):
        r, _ = await self.call(part, lambda c: c.open_session(part, key), timeout, True)
        return struct.unpack('<Q', r[3])[0]

    async def read(self, part, frm, level=0, timeout=5, most=1 << 20):
        r, _ = await self.call(part, lambda c: c.read(part, frm, 0, most, level), timeout, True)
        return r

    def close(self):
        for c in self.conns.values():
            c.close()
