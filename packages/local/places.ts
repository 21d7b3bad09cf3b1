// The clusters of this checkout: the one that `make up` keeps, and the demo's own.
import { resolve } from 'node:path';
import type { Ports } from './layout.ts';

const BUILD = resolve(import.meta.dirname, '../../build');

/** Here the cloister command looks for its settings, unless it is told otherwise. */
export const KEPT_FOLDER = resolve(BUILD, 'cluster');
/** Fixed, so that the names of images are always the same. Far from what other services like to have. */
export const KEPT_PORTS: Ports = { api: 17_070, link: 17_071, registry: 15_000 };
export const DEMO_FOLDER = resolve(BUILD, 'demo');
export const DEMO_CLUSTER_FOLDER = resolve(DEMO_FOLDER, 'cluster');
