import { type Graph, type Node, Tensor, tensorType, type Value } from "@quad-lora/onnx";

/**
 * Convolutions as matrix products: ONNX Runtime's integer convolution gives integers, which would be a rounding more than
 * the simulation has; its integer product gives floats.
 */
interface Geometry {
  batch: number;
  channels: number;
  /** Height and width. */
  input: readonly [number, number];
  output: readonly [number, number];
  kernel: readonly [number, number];
  strides: readonly number[];
  dilations: readonly number[];
  /** Top, left. */
  pads: readonly [number, number];
}

/** Whether {@link columnsOf} can do this convolution. */
export function isPlainConv(node: Node): boolean {
  return (
    node.int("group", 1) === 1 &&
    node.string("auto_pad", "NOTSET") === "NOTSET" &&
    node.input(0).concreteShape?.length === 4 &&
    node.output().concreteShape !== null
  );
}

/**
 * What each output position of a convolution sees, as rows: `[batch, positions, kernel height * kernel width * channels]`.
 * @param codes - the quantized input `[batch, channels, height, width]`, uint8; or several forms of it, one behind the
 *   other along the batch
 * @param zeroPoints - by form, the code for zero: it stands for what lies outside
 */
export function columnsOf(graph: Graph, node: Node, codes: Value, zeroPoints: readonly number[]): Value {
  const geometry = geometryOf(node);
  const { channels, input, output, kernel } = geometry;
  const batch = geometry.batch * zeroPoints.length;
  const apply = (operator: string, inputs: Value[], dims: number[], attributes = {}): Value => {
    const value = graph.apply(operator, inputs, { name: `${node.name}/columns/${operator}`, attributes });
    value.type = tensorType("uint8", dims);
    return value;
  };
  const last = apply("Transpose", [codes], [batch, ...input, channels], { perm: [0, 2, 3, 1] });
  const rows = apply("Reshape", [last, shape(graph, [batch, -1, channels])], [batch, input[0] * input[1], channels]);
  if (seesItself(geometry)) return rows;
  const outside = constant(graph, `quad.outside.${batch}x${channels}.${zeroPoints.join("_")}`, () =>
    Tensor.of(
      "uint8",
      [batch, 1, channels],
      Uint8Array.from({ length: batch * channels }, (_, at) => zeroPoints[Math.floor(at / channels / geometry.batch)]),
    ),
  );
  const positions = output[0] * output[1];
  const padded = apply("Concat", [rows, outside], [batch, input[0] * input[1] + 1, channels], { axis: 1 });
  const seen = apply(
    "Gather",
    [padded, sources(graph, geometry)],
    [batch, positions, kernel[0] * kernel[1], channels],
    {
      axis: 1,
    },
  );
  const width = kernel[0] * kernel[1] * channels;
  return apply("Reshape", [seen, shape(graph, [batch, positions, width])], [batch, positions, width]);
}

/** A convolution's result as rows: `[batch, positions, output channels]`. */
export function columnsShape(node: Node): [number, number, number] {
  const [batch, channels, height, width] = node.output().concreteShape!;
  return [batch, height * width, channels];
}

/** `[batch, positions, channels]` -> `[batch, channels, height, width]`, the convolution's output. */
export function rowsAsImage(graph: Graph, node: Node, rows: Value): Value {
  const dims = node.output().concreteShape!;
  const [batch, channels, height, width] = dims;
  const name = `${node.name}/image`;
  rows.type = tensorType("float32", columnsShape(node));
  const image = graph.apply("Reshape", [rows, shape(graph, [batch, height, width, channels])], {
    name: `${name}/Reshape`,
  });
  image.type = tensorType("float32", [batch, height, width, channels]);
  return graph.apply("Transpose", [image], { name: `${name}/Transpose`, attributes: { perm: [0, 3, 1, 2] } });
}

/** Rows of the input that each output position sees, `[positions, kernel height * kernel width]`; the last row is outside. */
function sources(graph: Graph, { input, output, kernel, strides, dilations, pads }: Geometry): Value {
  const key = [input, output, kernel, strides, dilations, pads].map((list) => list.join("x")).join("_");
  return constant(graph, `quad.columns.${key}`, () => {
    const outside = input[0] * input[1];
    const rows: number[] = [];
    for (let top = 0; top < output[0]; top++) {
      for (let left = 0; left < output[1]; left++) {
        for (let ky = 0; ky < kernel[0]; ky++) {
          for (let kx = 0; kx < kernel[1]; kx++) {
            const y = top * strides[0] - pads[0] + ky * dilations[0];
            const x = left * strides[1] - pads[1] + kx * dilations[1];
            const isInside = y >= 0 && y < input[0] && x >= 0 && x < input[1];
            rows.push(isInside ? y * input[1] + x : outside);
          }
        }
      }
    }
    return Tensor.of("int32", [output[0] * output[1], kernel[0] * kernel[1]], Int32Array.from(rows));
  });
}

function geometryOf(node: Node): Geometry {
  const [batch, channels, height, width] = node.input(0).concreteShape!;
  const output = node.output().concreteShape!;
  const kernel = node.input(1).concreteShape!;
  const pads = node.ints("pads", [0, 0, 0, 0]);
  return {
    batch,
    channels,
    input: [height, width],
    output: [output[2], output[3]],
    kernel: [kernel[2], kernel[3]],
    strides: node.ints("strides", [1, 1]),
    dilations: node.ints("dilations", [1, 1]),
    pads: [pads[0], pads[1]],
  };
}

/** Whether every output position sees the input position in its place and nothing else. */
function seesItself({ input, output, kernel, strides }: Geometry): boolean {
  const isOne = (list: readonly number[]) => list.every((value) => value === 1);
  return isOne(kernel) && isOne(strides) && input.join() === output.join();
}

function shape(graph: Graph, dims: number[]): Value {
  return constant(graph, `quad.shape.${dims.join("x").replaceAll("-", "_")}`, () => Tensor.int64([dims.length], dims));
}

const constants = new WeakMap<Graph, Map<string, Value>>();

/** A constant that the graph holds once, by its name. */
function constant(graph: Graph, name: string, make: () => Tensor): Value {
  let known = constants.get(graph);
  if (!known) constants.set(graph, (known = new Map([...graph.initializers].map((value) => [value.name, value]))));
  let value = known.get(name);
  if (!value) known.set(name, (value = graph.addInitializer(name, make())));
  return value;
}
