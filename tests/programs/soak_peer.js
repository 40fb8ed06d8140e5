// SPDX-License-Identifier: MIT
// soak_peer.js server TABLE PORT | client TABLE SEED CONNECTIONS SECONDS NAME=PORT…: the streams of soak_lib.py, whose reports and signals
// these are, too.
'use strict';
const fs = require('fs');
const net = require('net');

const PERIOD = 1048573;
const PIECE = 65536;
const HANG_S = Number(process.env.SOAK_HANG_S || 5);
const [role, tablePath, ...args] = process.argv.slice(2);
const file = fs.readFileSync(tablePath);
const table = Buffer.concat([file, file]);

const say = (fields) => fs.writeSync(1, JSON.stringify(fields) + '\n');
const now = () => Number(process.hrtime.bigint()) / 1e9;  // CLOCK_MONOTONIC

function slice(number, direction, offset, size) {
  const at = (number * 7919 + direction * 104729 + offset) % PERIOD;  // below 2^53
  return table.subarray(at, at + size);
}

function random(seed) {
  let word = seed & 0x7fffffff;
  return (below) => {
    word = (Math.imul(word, 1103515245) + 12345) & 0x7fffffff;
    return Math.floor(word / 8) % below;
  };
}

class Stream {
  constructor(number, rounds, word, client) {
    Object.assign(this, {number, rounds, word, client, up: 0, down: 0, sendingUp: true});
    this.left = this.size();
  }

  size() {
    this.word = (Math.imul(this.word, 1103515245) + 12345) & 0x7fffffff;
    const kind = (this.word >>> 8) % 16, value = this.word >>> 12;
    if (kind < 8) return 1 + value % 200;
    if (kind < 13) return 1 + value % 8000;
    return 1 + value % (kind === 15 ? 400000 : 60000);
  }

  // Moves on by n bytes of the block in hand.
  advance(n) {
    if (this.sendingUp) this.up += n; else this.down += n;
    this.left -= n;
    if (this.left > 0) return;
    if (!this.sendingUp) this.rounds--;
    this.sendingUp = !this.sendingUp;
    this.left = this.rounds ? this.size() : 0;
  }

  sends() { return this.rounds > 0 && this.sendingUp === this.client; }
  next(most) { return slice(this.number, this.sendingUp ? 0 : 1, this.sendingUp ? this.up : this.down, Math.min(this.left, most)); }
}

// Drives a stream over a socket. `ended(end)` is called once: ok, wrong …, or what went wrong.
class Driver {
  constructor(socket, stream, ended) {
    Object.assign(this, {socket, stream, over: false, moved: now(), waiting: false});
    this.ended = (end) => {
      if (this.over) return;
      this.over = true;
      drivers.delete(this);
      ended(end);
    };
    this.done = Buffer.alloc(0);
    drivers.add(this);
    socket.on('data', (data) => this.take(data));
    socket.on('drain', () => { this.moved = now(); this.send(); });
    socket.on('error', (error) => this.ended(error.code || String(error)));
    socket.on('end', () => this.end());
    socket.on('close', () => this.ended('EOF'));
  }

  send() {
    while (this.stream.sends() && !this.socket.destroyed) {
      const piece = this.stream.next(PIECE);
      this.stream.advance(piece.length);
      if (!this.socket.write(piece)) break;
    }
    if (!this.stream.client && this.stream.rounds === 0 && !this.said) {
      this.said = true;
      this.socket.write(Buffer.from([68, 79, 78, 69, ...new Uint8Array(new Uint32Array([this.stream.number]).buffer)]));
    }
  }

  take(data) {
    this.moved = now();
    while (data.length > 0 && !this.over) {
      if (this.stream.rounds === 0 && this.stream.client) {
        this.done = Buffer.concat([this.done, data]);
        if (this.done.length === 8) {
          if (this.done.toString('latin1', 0, 4) !== 'DONE' || this.done.readUInt32LE(4) !== this.stream.number) return this.wrong('no word of the server');
          this.socket.end();
        }
        if (this.done.length > 8) this.wrong('bytes behind the end');
        return;
      }
      if (this.stream.rounds === 0 || this.stream.sends()) return this.wrong('bytes out of turn');
      const expected = this.stream.next(data.length);
      const got = data.subarray(0, expected.length);
      if (!got.equals(expected)) return this.wrong(`offset ${this.stream.sendingUp ? this.stream.up : this.stream.down} size ${got.length}`);
      this.stream.advance(got.length);
      data = data.subarray(got.length);
      if (this.stream.sends() || this.stream.rounds === 0) this.send();
    }
  }

  wrong(what) {
    this.ended(`wrong stream ${this.stream.number}: ${what}`);
    this.socket.destroy();
  }

  end() {
    const whole = this.stream.rounds === 0 && (!this.stream.client || this.done.length === 8);
    this.ended(whole ? 'ok' : 'EOF');
    if (whole) this.socket.end(); else this.socket.destroy();
  }
}

const drivers = new Set();

function watch() {
  setInterval(() => {
    for (const driver of drivers) {
      if (now() - driver.moved < HANG_S || driver.hung) continue;
      driver.hung = true;
      say({hang: 'stream', t0: driver.moved, t1: now(), pid: process.pid});
    }
  }, 500).unref();
}

function serve(port) {
  const server = net.createServer({allowHalfOpen: true, noDelay: true}, (socket) => {
    let header = Buffer.alloc(0);
    const first = (data) => {
      header = Buffer.concat([header, data]);
      if (header.length < 16) return;
      socket.off('data', first);
      socket.off('error', ignore);
      const stream = new Stream(header.readUInt32LE(4), header.readUInt32LE(8), header.readUInt32LE(12), false);
      const driver = new Driver(socket, stream, (end) => end.startsWith('wrong') && say({wrong: end}));
      driver.take(header.subarray(16));
    };
    const ignore = () => {};
    socket.on('error', ignore);
    socket.on('data', first);
    socket.on('end', () => header.length < 16 && socket.destroy());
  });
  let tries = 0;
  server.on('error', (error) => {
    if (error.code !== 'EADDRINUSE' || ++tries > 100) throw error;
    setTimeout(() => server.listen(port, '127.0.0.1', 128), 100);
  });
  server.listen(port, '127.0.0.1', 128);
  process.on('SIGTERM', () => process.exit(0));
}

function ask(seed, connections, seconds, targets) {
  const deadline = seconds ? now() + seconds : Infinity;
  let resting = false, running = 0, count = 0, last = false;
  const pick = random(seed);
  const over = () => resting || now() > deadline;
  const nap = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  function connection() {
    return new Promise((resolve) => {
      const [target, port] = targets[pick(targets.length)];
      const number = ((process.pid << 16) | (++count & 0xffff)) >>> 0;
      const rounds = [1, 10, 40, 100, 200][pick(5)], word = pick(1 << 27), aborts = pick(10) === 0 ? pick(200000) : Infinity;
      const report = {number, target, t0: now(), bytes: 0, first: false, op: aborts === Infinity ? null : 'abort'};
      const stream = new Stream(number, rounds, word, true);
      const socket = net.connect({port, host: '127.0.0.1', noDelay: true, allowHalfOpen: true});
      let connected = false;
      const driver = new Driver(socket, stream, (end) => {
        if (end === 'EMFILE') return resolve(false);
        say({...report, end: connected ? end : `connect ${end}`, t1: now(), bytes: stream.up + stream.down, first: stream.down > 0});
        resolve(end === 'ok');
      });
      socket.on('connect', () => {
        connected = true;
        report.port = socket.localPort;
        const header = Buffer.alloc(16);
        header.write('SOAK');
        header.writeUInt32LE(number, 4);
        header.writeUInt32LE(rounds, 8);
        header.writeUInt32LE(word, 12);
        socket.write(header);
        driver.send();
      });
      socket.on('data', () => {
        if (stream.up + stream.down < aborts || driver.over) return;
        driver.ended('ok');
        socket.destroy();
      });
    });
  }

  async function work() {
    running++;
    while (!over()) {
      if (!await connection()) await nap(100);
    }
    if (--running === 0) {
      say({resting: true});
      if (seconds || last) process.exit(0);
    }
  }

  const begin = () => {
    resting = false;
    for (let i = 0; i < connections; i++) work();
  };
  process.on('SIGUSR2', () => { resting = true; });
  process.on('SIGHUP', begin);
  process.on('SIGTERM', () => {
    last = resting = true;
    if (running === 0) process.exit(0);
  });
  setInterval(() => {}, 1000);  // resting is not the end
  watch();
  begin();
}

if (role === 'server') {
  serve(Number(args[0]));
} else {
  const [seed, connections, seconds] = args.slice(0, 3).map(Number);
  ask(seed, connections, seconds, args.slice(3).map((t) => [t.split('=')[0], Number(t.split('=')[1])]));
}
