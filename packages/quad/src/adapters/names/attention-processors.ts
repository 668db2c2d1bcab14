import type { Alias, NamingConvention } from "./convention.ts";

/** What diffusers' attention processors and old text encoder LoRAs call a layer: `to_out` for `to_out.0` or `out_proj`. */
export const attentionProcessors: NamingConvention = {
  name: "diffusers' attention processors",
  *aliases({ targets }): Generator<Alias> {
    for (const [name, target] of targets) {
      const dot = name.endsWith(".to_out.0") ? name.length - "to_out.0".length : name.lastIndexOf(".") + 1;
      const last = name.slice(dot);
      if (last === "to_out.0" || last === "out_proj") yield [`${name.slice(0, dot)}to_out`, target];
      else if (/^[qkv]_proj$/.test(last)) yield [`${name.slice(0, dot)}to_${last[0]}`, target];
    }
  },
};
