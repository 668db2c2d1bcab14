import { InputError } from "@quad-lora/base";
import { checkImagePair, type Image } from "./image.ts";
import { checkInput, checkInputCount, floatTensor, type MetricSession, runNetwork } from "./network.ts";

/**
 * LPIPS (Zhang et al. 2018) through a network the caller supplies: two inputs `[1, 3, H, W]` of RGB in -1..1, one
 * output with a single value. The images go in as they are, without resizing.
 *
 * @returns the network's distance, 0 for equal images.
 * @throws InputError when the images differ in size, or the graph's inputs or output do not fit.
 */
export async function lpips(session: MetricSession, a: Image, b: Image): Promise<number> {
  checkImagePair(a, b);
  const names = checkInputCount(session, "LPIPS network", 2);
  const dims = [1, 3, a.height, a.width];
  for (const name of names) checkInput(session, "LPIPS network", name, ["float32"], dims);
  const output = await runNetwork(session, "LPIPS network", {
    [names[0]]: floatTensor(signedPlanes(a), dims),
    [names[1]]: floatTensor(signedPlanes(b), dims),
  });
  if (output.data.length !== 1)
    throw new InputError({
      what: "the network does not return a single distance",
      where: `LPIPS network, output ${session.outputNames[0]}`,
      expected: "one value",
      got: `[${output.dims.join(", ")}]`,
      fix: "Export LPIPS with spatial averaging (spatial=False).",
    });
  return output.data[0];
}

/** `[3, height, width]` in -1..1. */
function signedPlanes({ width, height, data }: Image): Float32Array {
  const size = width * height;
  const planes = new Float32Array(3 * size);
  for (let c = 0; c < 3; c++) for (let i = 0; i < size; i++) planes[c * size + i] = data[3 * i + c] / 127.5 - 1;
  return planes;
}
