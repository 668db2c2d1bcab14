import { attentionProcessors } from "./attention-processors.ts";
import type { NamingConvention } from "./convention.ts";
import { flux } from "./flux.ts";
import { fusedProjections } from "./fused-projections.ts";
import { pixart } from "./pixart.ts";
import { sd3 } from "./sd3.ts";
import { sgm } from "./sgm.ts";
import { openClip, textModelScopes } from "./text-encoder.ts";
import { xlabs } from "./xlabs.ts";

/**
 * All conventions, each of which sees the names of those before it. Names of the model itself win over derived ones, and
 * earlier derivations over later ones.
 */
export const conventions: readonly NamingConvention[] = [
  fusedProjections,
  attentionProcessors,
  textModelScopes,
  openClip,
  sgm,
  flux,
  xlabs,
  sd3,
  pixart,
];
