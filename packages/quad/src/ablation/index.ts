export { type Ablation, type AblationRow, type Figures, readAblation, writeAblation } from "../records/ablation.ts";
export { ablationTable, meanOf } from "../report/ablation-table.ts";
export { type AblateOptions, ablate } from "./ablate.ts";
export { ablationVariants, type ProfileKind, type Variant } from "./variants.ts";
