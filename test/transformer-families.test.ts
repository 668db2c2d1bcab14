import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, toFloat32, toTypedArray } from "@quad-lora/base";
import { type FolderFiles, type GeneratedImage, type GenerateOptions, openPipeline } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { expose, folderFiles, readImage, writeImage } from "quad-lora";
import { describe, expect, test } from "vitest";
import { meanDifference, relativeDifference } from "./helpers/pictures.ts";

const families = fileURLToPath(new URL("families/", import.meta.url));

interface Run {
  prompt: string | null;
  negative_prompt: string | null;
  steps: number;
  guidance: number;
  true_cfg_scale?: number;
  adapter: string | null;
  strength: number;
  scheduler_folder: string;
  size: [number, number];
}
