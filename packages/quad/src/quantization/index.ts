export * from "./encoding.ts";
export * from "./histogram.ts";
