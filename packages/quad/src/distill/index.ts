export { type DistillSettings, type DistillSettingsInput, distillSchema } from "../settings/distill.ts";
export { recordDataset } from "./dataset-teacher.ts";
export { type DistillAdapterOptions, type DistillAdapterResult, distillAdapter } from "./distill-adapter.ts";
export { type DistillNewOptions, distillNew } from "./distill-new.ts";
export { recordTeacher, teacherCases } from "./teacher.ts";
