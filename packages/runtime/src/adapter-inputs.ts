import type { NumberArray } from "@quad-lora/base";
import { InputError } from "@quad-lora/base";
import type { Tensor } from "onnxruntime-common";
import type { Slot, SlotsFile } from "./configs.ts";
import type { Component } from "./ort.ts";

/** Element types that adapter inputs can have. */
export type FactorType = "float32" | "float16" | "int8" | "int16";

/** One adapter input of a graph. */
export interface AdapterInput {
  name: string;
  type: FactorType;
  shape: Slot["shapeA"];
  rankAxis: number;
}

/**
 * The adapter inputs of one component, A and B of each slot in turn.
 *
 * @param file - of the slots, for messages
 * @throws InputError when the graph lacks an input, or has it with an element type that adapters cannot have or that the
 *   slots contradict
 */
export function adapterInputs(
  layout: SlotsFile["components"][string],
  component: Pick<Component, "input">,
  file: string,
): AdapterInput[] {
  const inputs: AdapterInput[] = [];
  for (const slot of layout.slots) {
    for (const [name, shape] of [
      [slot.inputA, slot.shapeA],
      [slot.inputB, slot.shapeB],
    ] as const) {
      const rankAxis = shape.indexOf("rank");
      if (rankAxis < 0 || rankAxis !== shape.lastIndexOf("rank")) {
        throw new InputError({ what: 'a shape needs the dimension "rank" exactly once', file, where: name });
      }
      const { type } = component.input(name);
      if (!isFactorType(type) || (layout.elementType !== undefined && layout.elementType !== type)) {
        throw new InputError({
          what: "the graph's adapter input has another element type",
          file,
          where: name,
          expected: layout.elementType ?? "float32, float16, int8 or int16",
          got: type,
          fix: "The slots and the graph belong to different folders: copy or make the folder again.",
        });
      }
      inputs.push({ name, type, shape, rankAxis });
    }
  }
  return inputs;
}

/** A slot's shape with the rank filled in. */
export function concrete(shape: Slot["shapeA"], rank: number): number[] {
  return shape.map((size) => (size === "rank" ? rank : size));
}

const zeroViews: Record<FactorType, (buffer: ArrayBuffer, length: number) => NumberArray> = {
  float32: (buffer, length) => new Float32Array(buffer, 0, length),
  float16: (buffer, length) => new Uint16Array(buffer, 0, length),
  int8: (buffer, length) => new Int8Array(buffer, 0, length),
  int16: (buffer, length) => new Int16Array(buffer, 0, length),
};

/** The first `length` elements of a zeroed buffer in the input's type: zero is all bits off in every one of them. */
export function zerosOf({ type }: AdapterInput, buffer: ArrayBuffer, length: number): NumberArray {
  return zeroViews[type](buffer, length);
}

function isFactorType(type: Tensor.Type): type is FactorType {
  return Object.hasOwn(zeroViews, type);
}
