// Prints "PASSED FAILED" for a vitest JSON report: count-tests.mjs REPORT EXIT_CODE_OF_VITEST
import { readFileSync } from "node:fs";

const [path, status] = process.argv.slice(2);
let passed = 0;
let failed = 0;
try {
  const { testResults } = JSON.parse(readFileSync(path, "utf8"));
  for (const { status: fileStatus, assertionResults } of testResults) {
    const failures = assertionResults.filter((test) => test.status === "failed").length;
    passed += assertionResults.filter((test) => test.status === "passed").length;
    // A file can fail without any test of its own failing: it did not load, or a hook threw.
    failed += failures > 0 || fileStatus !== "failed" ? failures : 1;
  }
} catch {
  // No report: the build failed, or vitest did not get that far.
}
if (status !== "0" && failed === 0) failed = 1;
console.log(`${passed} ${failed}`);
