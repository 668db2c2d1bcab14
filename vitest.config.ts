import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const source = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  resolve: {
    alias: {
      "@quad-lora/base": source("./packages/base/src/index.ts"),
      "@quad-lora/onnx": source("./packages/onnx/src/index.ts"),
      "@quad-lora/runtime": source("./packages/runtime/src/index.ts"),
      "quad-lora": source("./packages/quad/src/index.ts"),
    },
  },
  test: {
    include: ["packages/*/src/**/*.test.ts", "test/**/*.test.ts"],
    globalSetup: "test/helpers/find-chromium.ts",
    testTimeout: 120_000,
    hookTimeout: 120_000,
    pool: "forks",
    maxWorkers: 2,
  },
});
