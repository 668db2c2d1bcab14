import type { Conditions, RowInput } from "./family.ts";

/** `[tokens, width]` of two encoders side by side: `[tokens, sum of widths]`. */
export function sideBySide(first: RowInput, second: RowInput): RowInput {
  const [tokens, start] = first.dims;
  const [, width] = second.dims;
  const { dims, values } = widen(first, start + width);
  for (let token = 0; token < tokens; token++) {
    for (let i = 0; i < width; i++) values[token * dims[1] + start + i] = second.values[token * width + i];
  }
  return { dims, values };
}

/** `[tokens, width]` with zeros behind every token. */
export function widen({ dims: [tokens, from], values }: RowInput, width: number) {
  const wide = new Float32Array(tokens * width);
  for (let token = 0; token < tokens; token++) {
    for (let i = 0; i < from; i++) wide[token * width + i] = values[token * from + i];
  }
  return { dims: [tokens, width], values: wide };
}

/** One behind the other along their first axis. */
export function concatenate(first: RowInput, second: RowInput): RowInput {
  const values = new Float32Array(first.values.length + second.values.length);
  values.set(first.values);
  values.set(second.values, first.values.length);
  return { dims: [first.dims[0] + second.dims[0], ...first.dims.slice(1)], values };
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
