import { type Alias, isTextEncoder, type NamingConvention } from "./convention.ts";

/**
 * Scopes that versions of transformers put around the layers of CLIP's text model: `text_model.encoder.layers.0`, without
 * `text_model` from version 5 on, and without `encoder` where the layers were exported by themselves.
 */
const scopes = ["text_model.encoder.", "encoder.", "text_model.", ""];

/** A text encoder's layers in every scope, whichever of them the model and the file have. */
export const textModelScopes: NamingConvention = {
  name: "scopes of text models",
  *aliases({ component, targets }): Generator<Alias> {
    if (!isTextEncoder(component)) return;
    for (const [name, target] of targets) {
      const layer = /^(?:text_model\.)?(?:encoder\.)?(layers\.\d+\..+)$/.exec(name)?.[1];
      if (layer) for (const scope of scopes) yield [scope + layer, target];
    }
  },
};

/** OpenCLIP's names of layers in a text encoder of transformers. */
export const openClip: NamingConvention = {
  name: "OpenCLIP",
  *aliases({ component, targets }): Generator<Alias> {
    if (!isTextEncoder(component)) return;
    for (const [name, target] of targets) {
      const [, layer, kind, rest] = /^layers\.(\d+)\.(self_attn|mlp)\.(.+)$/.exec(name) ?? [];
      const own =
        kind === "self_attn" ? `attn.${rest}` : rest === "fc1" ? "mlp.c_fc" : rest === "fc2" ? "mlp.c_proj" : "";
      if (own) yield [`transformer.resblocks.${layer}.${own}`, target];
    }
  },
};
