import { fileURLToPath } from "node:url";

const source = (path: string) => fileURLToPath(new URL(`../../packages/${path}/src/index.ts`, import.meta.url));

/** For bundlers: what pages import is taken from the sources, whatever was built last. */
export const sourceAlias = { "@quad-lora/base": source("base"), "@quad-lora/runtime": source("runtime") };
