export { concatenateAlong, type NumberArray, sliceAlong } from "./arrays.ts";
export { isBoundedPattern } from "./bounded-pattern.ts";
export { InputError, type InputProblem } from "./errors.ts";
export * from "./float16.ts";
export { checkRelativePath } from "./relative-path.ts";
export * from "./safetensors.ts";
export { type Checked, checkValue, type Schema } from "./schema.ts";
