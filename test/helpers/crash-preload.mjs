// Loaded with --import into a process that is to be killed at one of its file operations. QUAD_CRASH_AT: its number; without it
// the operations are written to QUAD_CRASH_LOG. Folders that are copied or removed count twice: untouched, and half done.
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";

const at = Number(process.env.QUAD_CRASH_AT ?? 0);
const log = process.env.QUAD_CRASH_LOG;
const { rm, copyFile, mkdir, open } = fs.promises;
const { readdirSync, writeFileSync } = fs;
const operations = [];
let count = 0;

function step(name, ...paths) {
  count++;
  if (count === at) process.kill(process.pid, "SIGKILL");
  // A handle's operations have contents in place of paths.
  operations.push([name, ...paths.filter((path) => typeof path === "string" && path.startsWith("/"))].join(" "));
}

/** Files of a folder. */
function filesOf(folder, prefix = "") {
  return readdirSync(join(folder, prefix), { withFileTypes: true }).flatMap((entry) => {
    const path = join(prefix, entry.name);
    return entry.isDirectory() ? filesOf(folder, path) : [path];
  });
}

const isFolder = (path) => fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;

function wrap(object, name, half) {
  const original = object[name];
  object[name] = async function (...args) {
    step(name, ...args);
    if (half && isFolder(args[0])) {
      if (count + 1 === at) await half(...args);
      step(`half ${name}`, ...args);
    }
    return original.apply(this, args);
  };
}

for (const name of [
  "mkdir",
  "rename",
  "link",
  "writeFile",
  "copyFile",
  "rmdir",
  "unlink",
  "symlink",
  "utimes",
  "truncate",
])
  wrap(fs.promises, name);
wrap(fs.promises, "rm", async (path) => {
  const files = filesOf(path);
  for (const file of files.slice(0, Math.ceil(files.length / 2))) await rm(join(path, file));
});
wrap(fs.promises, "cp", async (from, to) => {
  const files = filesOf(from);
  for (const file of files.slice(0, Math.ceil(files.length / 2))) {
    await mkdir(join(to, file, ".."), { recursive: true });
    await copyFile(join(from, file), join(to, file));
  }
});
const originalOpen = fs.promises.open;
fs.promises.open = async (path, flags, ...rest) => {
  if (flags !== undefined && flags !== "r") step("open", path);
  return originalOpen(path, flags, ...rest);
};
const handle = await open(new URL(import.meta.url));
const methods = Object.getPrototypeOf(handle);
await handle.close();
for (const name of ["write", "writev", "writeFile", "sync", "datasync"]) wrap(methods, name);
for (const name of [
  "writeFileSync",
  "renameSync",
  "mkdirSync",
  "rmSync",
  "writeSync",
  "copyFileSync",
  "ftruncateSync",
]) {
  const original = fs[name];
  fs[name] = (...args) => {
    // Files, not what goes to the terminal.
    if (args[0] !== 1 && args[0] !== 2) step(name, args[0]);
    return original(...args);
  };
}
if (log) process.on("exit", () => writeFileSync(log, `${operations.join("\n")}\n`));
syncBuiltinESMExports();
