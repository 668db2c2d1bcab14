import { adalora } from "./adalora.ts";
import { loha } from "./loha.ts";
import { lokr } from "./lokr.ts";
import { lora } from "./lora.ts";
import type { AdapterMethod } from "./method.ts";

/** All methods that are read; where several accept a layer's tensors, the first. */
export const methods: readonly AdapterMethod[] = [loha, lokr, adalora, lora];
