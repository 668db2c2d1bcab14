export {
  type Alignment,
  type AlignmentInput,
  type AlignmentStep,
  alignToGrid,
  balance,
  factorScales,
  productError,
  rotate,
} from "./align.ts";
export type { Factors } from "./rows.ts";
