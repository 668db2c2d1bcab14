import type { Conditions, RowInput } from "./family.ts";

/** `[tokens, width]` of two encoders side by side: `[tokens, sum of widths]`. */
export function sideBySide(first: RowInput, second: RowInput): RowInput {
  const [tokens, firstWidth] = first.dims;
  const secondWidth = second.dims[1];
  const width = firstWidth + secondWidth;
  const values = new Float32Array(tokens * width);
  for (let token = 0; token < tokens; token++) {
    for (let i = 0; i < firstWidth; i++) values[token * width + i] = first.values[token * firstWidth + i];
    for (let i = 0; i < secondWidth; i++) {
      values[token * width + firstWidth + i] = second.values[token * secondWidth + i];
    }
  }
  return { dims: [tokens, width], values };
}

/** As many zeros of the same shapes. */
export function zerosLike(conditions: Conditions): Conditions {
  return Object.fromEntries(
    Object.entries(conditions).map(([name, { dims, values }]) => [
      name,
      { dims, values: new Float32Array(values.length) },
    ]),
  );
}
