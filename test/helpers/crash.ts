import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const preload = pathToFileURL(join(import.meta.dirname, "crash-preload.mjs")).href;

/** Runs a program that is killed at one of its file operations. Returns whether it was. */
export function runUntil(operation: number, program: readonly string[]): boolean {
  const { signal, status, stderr } = spawnSync(process.execPath, ["--import", preload, ...program], {
    encoding: "utf8",
    env: { ...process.env, QUAD_CRASH_AT: String(operation) },
  });
  if (signal === "SIGKILL") return true;
  if (status === 0) return false;
  throw new Error(`${program.join(" ")} ended with ${signal ?? status}: ${stderr}`);
}

/** Runs a program to its end. @returns its file operations, in order */
export function operationsOf(program: readonly string[], log: string): string[] {
  rmSync(log, { force: true });
  const { status, stderr } = spawnSync(process.execPath, ["--import", preload, ...program], {
    encoding: "utf8",
    env: { ...process.env, QUAD_CRASH_LOG: log },
  });
  if (status !== 0) throw new Error(`${program.join(" ")} ended with ${status}: ${stderr}`);
  return existsSync(log) ? readFileSync(log, "utf8").trimEnd().split("\n") : [];
}
