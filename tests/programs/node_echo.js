// SPDX-License-Identifier: MIT
// node_echo.js server | client PORT CONNECTIONS BYTES | both 0 CONNECTIONS BYTES: net.Socket echo with back-pressure and half-close.
'use strict';
const crypto = require('crypto');
const net = require('net');

function serve(then) {
  const server = net.createServer({allowHalfOpen: true, noDelay: true}, (socket) => socket.pipe(socket));
  server.listen(0, '127.0.0.1', () => {
    console.log(`PORT ${server.address().port}`);
    then(server);
  });
}

function ask(port, bytes) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({port, host: '127.0.0.1', noDelay: true, allowHalfOpen: true});
    const data = crypto.randomBytes(bytes);
    const parts = [];
    let sent = 0, received = 0;
    // The first 4000 bytes go in small round trips, the rest as fast as it is taken.
    const more = () => {
      if (received < 4000) {
        if (received === sent) {
          socket.write(data.subarray(sent, sent += 100));
        }
        return;
      }
      while (sent < bytes) {
        const length = Math.min(bytes - sent, 1 + Math.floor(Math.random() * 60000));
        const room = socket.write(data.subarray(sent, sent + length));
        sent += length;
        if (sent >= bytes) socket.end();
        if (!room) break;
      }
    };
    socket.on('connect', more);
    socket.on('drain', more);
    socket.on('data', (part) => {
      parts.push(part);
      received += part.length;
      if (sent < bytes && (received <= 4000 || received - part.length < 4000)) more();
    });
    socket.on('error', reject);
    socket.on('close', () => {
      if (Buffer.concat(parts).equals(data)) return resolve();
      reject(new Error(`${received} of ${bytes} bytes`));
    });
  });
}

const askAll = (port, connections, bytes) => Promise.all(Array.from({length: connections}, () => ask(port, bytes)));

const [role, ...args] = process.argv.slice(2);
const [port, connections, bytes] = args.map(Number);
const fail = (error) => {
  console.error(error);
  process.exit(1);
};
if (role === 'server') {
  serve(() => {});
  process.on('SIGTERM', () => process.exit(0));
} else if (role === 'client') {
  askAll(port, connections, bytes).then(() => console.log('checked')).catch(fail);
} else {
  serve((server) => askAll(server.address().port, connections, bytes).then(() => {
    console.log('checked');
    server.close();
  }).catch(fail));
}
