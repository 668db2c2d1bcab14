import type { SafetensorsInput } from "@quad-lora/base";
import type { PackedParameter } from "@quad-lora/onnx";
import { elementCount } from "@quad-lora/onnx";
import type { Slot } from "@quad-lora/runtime";
import type { SlotScales } from "../factors/encode-factors.ts";
import { type BitWidth, gridLimits } from "../quantization/index.ts";

/**
 * Factors are trained in units of an 8-bit grid: one learning rate then suits slots of all scales and both widths. A factor is
 * `unit * scale`, the scale that of the slot times what a unit holds in codes.
 */
export const codesPerUnit = (bits: BitWidth): number => 2 ** (bits - 8);

/** The slot inputs that an adapter has, with the steps of their grids. */
export interface FactorInput {
  name: string;
  /** Step of the grid. */
  scale: number;
}

export function factorInputs(
  slots: readonly Slot[],
  scales: ReadonlyMap<string, SlotScales>,
  present: ReadonlySet<string>,
): FactorInput[] {
  return slots.flatMap((slot) => {
    const scale = scales.get(slot.name);
    if (!scale || !present.has(slot.inputA)) return [];
    return [
      { name: slot.inputA, scale: scale.a },
      { name: slot.inputB, scale: scale.b },
    ];
  });
}

/** Values on the grids -> the vector that is trained. */
export function packFactors(
  values: readonly SafetensorsInput[],
  layout: readonly PackedParameter[],
  inputs: readonly FactorInput[],
  bits: BitWidth,
): Float32Array {
  const byName = new Map(values.map((tensor) => [tensor.name, tensor.data as Float32Array]));
  const scales = new Map(inputs.map(({ name, scale }) => [name, scale]));
  const size = layout.reduce((sum, { dims }) => sum + elementCount(dims), 0);
  const packed = new Float32Array(size);
  for (const { name, offset } of layout) {
    const unit = scales.get(name)! * codesPerUnit(bits);
    byName.get(name)!.forEach((value, index) => {
      packed[offset + index] = value / unit;
    });
  }
  return packed;
}

/** The trained vector -> values on the grids, rounded as the student does, in the graph inputs' layouts. */
export function unpackFactors(
  packed: Float32Array,
  layout: readonly PackedParameter[],
  inputs: readonly FactorInput[],
  bits: BitWidth,
): SafetensorsInput[] {
  const { low, high } = gridLimits({ bits, signed: true, symmetric: true });
  const scales = new Map(inputs.map(({ name, scale }) => [name, scale]));
  return layout.map(({ name, offset, dims }) => {
    const scale = scales.get(name)!;
    const data = packed.slice(offset, offset + elementCount(dims)).map((unit) => {
      const code = Math.min(high, Math.max(low, roundToEven(unit * codesPerUnit(bits))));
      // Without a negative zero, which codes cannot tell.
      return code * scale + 0;
    });
    return { name, dtype: "F32", shape: [...dims], data };
  });
}

/** As ONNX's Round. */
function roundToEven(value: number): number {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
