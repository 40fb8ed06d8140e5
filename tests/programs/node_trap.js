// SPDX-License-Identifier: MIT
// node takes SIGSEGV for WebAssembly: a load out of bounds is a fault of the guard region behind its memory, between the messages here.
// node_trap.js ROUNDS  prints "checked ROUNDS rounds, N traps"
'use strict';
const net = require('net');
const rounds = Number(process.argv[2]);
const kMessageBytes = 500;

// (module (memory 1) (func (export "load") (param i32) (result i32) local.get 0 i32.load))
const module_ = new WebAssembly.Module(new Uint8Array([
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 6, 1, 0x60, 1, 0x7f, 1, 0x7f, 3, 2, 1, 0, 5, 3, 1, 0, 1,
  7, 8, 1, 4, 0x6c, 0x6f, 0x61, 0x64, 0, 0, 0x0a, 9, 1, 7, 0, 0x20, 0, 0x28, 2, 0, 0x0b,
]));
const load = new WebAssembly.Instance(module_).exports.load;

let traps = 0;
function trap(round) {
  try {
    load(0x7fff0000 - 4096 * round);
  } catch (e) {
    if (!(e instanceof WebAssembly.RuntimeError)) throw e;
    traps++;
  }
}

const server = net.createServer((socket) => socket.pipe(socket));
server.listen(0, '127.0.0.1', () => {
  const socket = net.connect(server.address().port, '127.0.0.1');
  let round = 0;
  let got = 0;
  const send = () => socket.write(Buffer.alloc(kMessageBytes, round & 255));
  socket.on('connect', send);
  socket.on('data', (bytes) => {
    for (const b of bytes) if (b !== (round & 255)) throw new Error(`round ${round}: byte ${b}`);
    got += bytes.length;
    if (got < kMessageBytes) return;
    got = 0;
    trap(round);
    if (++round < rounds) return send();
    socket.end();
    server.close();
    console.log(`checked ${rounds} rounds, ${traps} traps`);
  });
});
