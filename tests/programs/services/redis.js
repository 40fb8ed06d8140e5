// SPDX-License-Identifier: MIT
// redis.js PORT SIZE…: SET and GET of random values over one connection, in redis's own protocol; what was set is what is got.
'use strict';
const crypto = require('crypto');
const net = require('net');

const [port, ...sizes] = process.argv.slice(2).map(Number);
const socket = net.connect(port, '127.0.0.1');
let received = Buffer.alloc(0);
let wake = () => {};
socket.on('data', (part) => {
  received = Buffer.concat([received, part]);
  wake();
});
socket.on('error', (error) => {
  throw error;
});

function command(...words) {
  const parts = [Buffer.from(`*${words.length}\r\n`)];
  for (const word of words.map((w) => Buffer.from(w))) parts.push(Buffer.from(`$${word.length}\r\n`), word, Buffer.from('\r\n'));
  socket.write(Buffer.concat(parts));
}

async function take(count) {
  while (received.length < count) await new Promise((resolve) => wake = resolve);
  const taken = received.subarray(0, count);
  received = received.subarray(count);
  return taken;
}

async function main() {
  for (const [number, size] of sizes.entries()) {
    const value = crypto.randomBytes(size);
    command('SET', `key-${number}`, value);
    if (String(await take(5)) !== '+OK\r\n') throw new Error('SET was refused');
    command('GET', `key-${number}`);
    const head = `$${size}\r\n`;
    const got = await take(head.length + size + 2);
    if (!got.equals(Buffer.concat([Buffer.from(head), value, Buffer.from('\r\n')]))) throw new Error(`${size} bytes came back wrong`);
  }
  console.log('checked');
  socket.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
