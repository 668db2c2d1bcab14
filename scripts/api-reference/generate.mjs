// npm run docs writes docs/api/{onnx,quad,runtime}.md; with --check it only says what lacks a docstring or an export.
import { entryPoints, readReference } from "./reference.mjs";

const { problems, write } = await readReference(entryPoints);
for (const problem of problems) console.error(problem);
if (process.argv.includes("--check")) {
  console.log(problems.length === 0 ? "Every export has a docstring." : `${problems.length} problems.`);
} else {
  await write();
  console.log("Wrote docs/api.");
}
if (problems.length > 0) process.exitCode = 1;
