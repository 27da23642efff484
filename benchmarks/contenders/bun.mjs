// Bun's own verbs, beginDistributed and commitDistributed, with the same protocol as worker.py: see task.py.
// It keeps no log: several databases are begun in parallel and then committed in parallel.
import { SQL } from "bun";
import { closeSync, fsyncSync, openSync } from "node:fs";
import { createInterface } from "node:readline";

const task = JSON.parse(process.argv[2]);
const rowsPerClient = Number(process.argv[3]);
const connections = Math.min(task.pool, task.clients);
const pools = task.urls.map((url) => new SQL(url, { max: connections, idleTimeout: 0 }));
const run = Math.random().toString(36).slice(2, 10);
let last = 0;

async function transact(client) {
  const name = `bench-${run}-${++last}`;
  const first = client * rowsPerClient;
  await Promise.all(
    pools.map((pool, branch) =>
      pool.beginDistributed(`${name}-${branch}`, async (tx) => {
        for (let row = first; row < first + task.statements; row++) {
          await tx`UPDATE accounts SET balance = balance + 1 WHERE id = ${row}`;
        }
      }),
    ),
  );
  await Promise.all(pools.map((pool, branch) => pool.commitDistributed(`${name}-${branch}`)));
}

async function work(seconds, count) {
  const until = seconds ? performance.now() + seconds * 1e3 : Infinity;
  const latencies = Array.from({ length: task.clients }, () => []);
  let begun = 0;
  const client = async (number) => {
    for (;;) {
      const began = performance.now();
      if (began >= until || (count && begun++ >= count)) return;
      await transact(number);
      latencies[number].push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: task.clients }, (_, number) => client(number)));
  return latencies;
}

function mark(order, name) {
  if (!order.marks) return;
  const number = openSync(`${order.marks}/mark-${name}`, "a+");
  fsyncSync(number);
  closeSync(number);
}

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

// Connected, all of them, before anything is counted.
for (const pool of pools) {
  const held = await Promise.all(Array.from({ length: connections }, () => pool.reserve()));
  for (const one of held) one.release();
}
say({ pid: process.pid });
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  mark(order, "begin");
  const began = performance.now();
  const before = process.cpuUsage();
  const each = await work(order.seconds, order.count);
  const latencies = each.flat().sort((a, b) => a - b);
  const served = each.map((one) => one.length);
  const used = process.cpuUsage(before);
  const seconds = (performance.now() - began) / 1e3;
  mark(order, "end");
  mark(order, "done");
  say({
    transactions: latencies.length,
    seconds,
    p50_ms: latencies[Math.floor(latencies.length / 2)],
    p99_ms: latencies[Math.floor((latencies.length * 99) / 100)],
    user_s: used.user / 1e6,
    system_s: used.system / 1e6,
    fewest: Math.min(...served),
    most: Math.max(...served),
  });
}
process.exit(0);
