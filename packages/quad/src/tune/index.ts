export { type TuneSettings, type TuneSettingsInput, tuneSchema } from "./options.ts";
export { type TuneProfileOptions, type TuneProfileResult, tuneProfile } from "./tune-profile.ts";
