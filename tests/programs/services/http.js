// SPDX-License-Identifier: MIT
// http.js server ROOT [PORT] | client [--ca FILE] URL ITEM…: the service of the tests (see app.py and client.py) in node.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const path = require('path');

function readAll(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', (part) => parts.push(part));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('error', reject);
    stream.on('aborted', () => reject(new Error('aborted')));
  });
}

function serve(root, port) {
  const files = new Map(fs.readdirSync(root).map((name) => ['/' + name, fs.readFileSync(path.join(root, name))]));
  const server = require('http').createServer(async (request, response) => {
    const sent = await readAll(request);
    const body = request.method === 'POST' ? sent : files.get(request.url);
    response.writeHead(body ? 200 : 404, {'Content-Length': body ? body.length : 0});
    response.end(body);
  });
  server.keepAliveTimeout = 60000;
  server.listen(port, '127.0.0.1', () => console.log(`PORT ${server.address().port}`));
  process.on('SIGTERM', () => process.exit(0));
}

async function client(ca, url, items) {
  const secure = url.startsWith('https:');
  const http = require(secure ? 'https' : 'http');
  const agent = new http.Agent({keepAlive: true, maxSockets: 1, ca: ca && fs.readFileSync(ca)});
  const fetch = (method, at, body) => new Promise((resolve, reject) => {
    const headers = body ? {'Content-Length': body.length} : {};
    const request = http.request(url + at, {agent, method, headers}, async (response) => {
      try {
        resolve([response.statusCode, await readAll(response)]);
      } catch (error) {
        reject(error);
      }
    });
    request.on('error', reject);
    request.end(body);
  });
  for (const item of items) {
    if (item.startsWith('+')) {
      const body = crypto.randomBytes(Number(item.slice(1)));
      const [status, got] = await fetch('POST', '/echo', body);
      if (!got.equals(body)) throw new Error(`${item}: ${got.length} bytes came back, and not the same`);
      console.log(`${status} ${got.length} echo`);
    } else {
      const [status, got] = await fetch('GET', item);
      console.log(`${status} ${got.length} ${crypto.createHash('sha256').update(got).digest('hex')}`);
    }
  }
  agent.destroy();
}

const [role, ...rest] = process.argv.slice(2);
if (role === 'server') {
  serve(rest[0], Number(rest[1] || 0));
} else {
  const ca = rest[0] === '--ca' ? rest.splice(0, 2)[1] : undefined;
  client(ca, rest[0].replace(/\/$/, ''), rest.slice(1)).catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
