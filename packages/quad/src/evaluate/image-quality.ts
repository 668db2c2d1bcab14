import type { RgbImage } from "@quad-lora/runtime";
import { psnr, ssim } from "../metrics/index.ts";
import { mean } from "../metrics/mean.ts";

/** Agreement of pictures with their full-precision counterparts. */
export interface ImageQuality {
  /** Mean over the pictures of PSNR in dB; a picture that is equal counts as 100. */
  psnr: number;
  /** The least PSNR among the pictures. */
  psnrMin: number;
  /** Mean SSIM (luma). */
  ssim: number;
  pictures: number;
}

const equalPsnr = 100;

export function imageQuality(reference: readonly RgbImage[], pictures: readonly RgbImage[]): ImageQuality {
  const bytes = (image: RgbImage) => ({ ...image, data: Uint8Array.from(image.data) });
  const values = reference.map((image, index) => {
    const [exact, approximate] = [bytes(image), bytes(pictures[index])];
    return { psnr: Math.min(psnr(exact, approximate), equalPsnr), ssim: ssim(exact, approximate) };
  });
  return {
    psnr: mean(values.map((value) => value.psnr)),
    psnrMin: Math.min(...values.map((value) => value.psnr)),
    ssim: mean(values.map((value) => value.ssim)),
    pictures: values.length,
  };
}
