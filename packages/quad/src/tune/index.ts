export { type TuneSettings, type TuneSettingsInput, tuneSchema } from "../settings/tune.ts";
export { type TuneProfileOptions, type TuneProfileResult, tuneProfile } from "./tune-profile.ts";
