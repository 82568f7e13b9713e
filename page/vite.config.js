// Fixed names, so that what is built differs from the last time only where the page does.
import { defineConfig } from "vite";

export default defineConfig({
  build: {
    outDir: "../src/carrara/serving/static/browse",
    emptyOutDir: true,
    modulePreload: false,
    target: "es2022",
    rolldownOptions: {
      output: {
        entryFileNames: "page.js",
        chunkFileNames: "page-[name].js",
        assetFileNames: "page.[ext]",
      },
    },
  },
});
