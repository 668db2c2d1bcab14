// A benchmark's process: calls one export of one module and sends back what it returns.
import { pathToFileURL } from "node:url";

const [module, exportName, argument] = process.argv.slice(2);
const { [exportName]: work } = await import(pathToFileURL(module));
const value = await work(JSON.parse(argument));
process.send({ value }, () => process.disconnect());
