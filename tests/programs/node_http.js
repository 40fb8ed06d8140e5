// SPDX-License-Identifier: MIT
// node_http.js server | client PORT CONNECTIONS REQUESTS: node's http with a keep-alive agent and checksummed bodies.
'use strict';
const crypto = require('crypto');
const http = require('http');

const sum = (data) => crypto.createHash('sha256').update(data).digest('hex');

function readAll(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', (part) => parts.push(part));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('error', reject);
    stream.on('aborted', () => reject(new Error('aborted')));
  });
}

function server() {
  const s = http.createServer(async (request, response) => {
    const body = await readAll(request);
    if (request.headers['x-sum'] !== sum(body)) return response.writeHead(500).end();
    const answer = Buffer.from(body).reverse();
    response.writeHead(200, {'Content-Length': answer.length, 'X-Sum': sum(answer)});
    response.end(answer);
  });
  s.keepAliveTimeout = 60000;
  s.listen(0, '127.0.0.1', () => console.log(`PORT ${s.address().port}`));
  process.on('SIGTERM', () => process.exit(0));
}

function request(agent, port, body, sockets) {
  return new Promise((resolve, reject) => {
    const r = http.request(
        {agent, port, host: '127.0.0.1', method: 'POST', headers: {'Content-Length': body.length, 'X-Sum': sum(body)}},
        async (response) => {
          try {
            const got = await readAll(response);
            const want = Buffer.from(body).reverse();
            if (response.statusCode !== 200 || !got.equals(want) || response.headers['x-sum'] !== sum(got)) {
              throw new Error(`status ${response.statusCode}, ${got.length} of ${want.length} bytes`);
            }
            resolve();
          } catch (error) {
            reject(error);
          }
        });
    r.on('error', reject);
    r.on('socket', (socket) => sockets.add(socket));  // reusedSocket does not tell of a request that waited for its connection
    r.end(body);
  });
}

async function client(port, connections, requests) {
  const agent = new http.Agent({keepAlive: true, maxSockets: connections});
  const sizes = [0, 1, 100, 5000, 70000];
  const sockets = new Set();
  await Promise.all(Array.from({length: connections}, async (_, c) => {
    for (let i = 0; i < requests; i++) {
      const size = i >= 20 && i % 20 === 0 ? 2000000 : sizes[(i + c) % sizes.length];
      await request(agent, port, crypto.randomBytes(size), sockets);
    }
  }));
  if (sockets.size !== connections) throw new Error(`${sockets.size} connections, not ${connections}`);
  console.log('checked');
  agent.destroy();
}

const [role, ...numbers] = process.argv.slice(2);
if (role === 'server') {
  server();
} else {
  client(...numbers.map(Number)).catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
