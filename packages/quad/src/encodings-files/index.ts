export {
  type AimetFile,
  type AimetTensorFacts,
  type AimetVersion,
  type ModelEncodings,
  type ReadAimetOptions,
  readAimet,
  writeAimet,
} from "./aimet.ts";
