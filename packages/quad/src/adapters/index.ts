export { type ImportAdapterOptions, importAdapter } from "./import.ts";
export * from "./types.ts";
export { type WriteAdapterOptions, writeKohya, writePeft } from "./write.ts";
