export { type AblateOptions, ablate } from "./ablate.ts";
export { type Ablation, type AblationRow, type Figures, readAblation, writeAblation } from "./ablation-file.ts";
export { ablationTable, meanOf } from "./table.ts";
export { ablationVariants, type ProfileKind, type Variant } from "./variants.ts";
