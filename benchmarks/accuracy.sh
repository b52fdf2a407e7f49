#!/bin/sh
# Measures everything that docs/results.md tells, on the CPU. SHARED holds models/ and data/ as their READMEs say.
# What a sweep file has already is not measured again; delete a file to measure it anew.
set -eu
cd "$(dirname "$0")/.."
SHARED=${SHARED:-../shared}
RUN="${PYTHON:-python} -m tiledse"
WORK=$(mktemp -d)
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"

NET="timm:tf_mobilenetv3_small_100 --weights $SHARED/models/tf_mobilenetv3_small_100.safetensors"
NET="$NET --data $SHARED/data/imagenet_val1300 --preprocess crop --batch-size 32"
$RUN sweep $NET -o results/accuracy/sweep_classify.csv --plot results/accuracy/sweep_classify.png --force --tiles \
7xW,Hx7,7x7,3xW,Hx3,3x3,5xW,Hx5,5x5,1xW,Hx1,1x1,9xW,Hx9,9x9,11xW,Hx11,11x11,13xW,Hx13,13x13,14xW,\
7xW:running,3xW:running,1xW:running,7xW:upper,7xW:middle
$RUN sensitivity $NET --tiles 3xW,7xW --plot results/accuracy/sensitivity_classify.png --force --json > "$WORK/a"
mv "$WORK/a" results/accuracy/sensitivity_classify.json
$RUN correlate $NET --tiles 1xW,3xW,5xW,7xW,9xW --plot results/accuracy/correlation_classify.png --force --json > "$WORK/a"
mv "$WORK/a" results/accuracy/correlation_classify.json

${PYTHON:-python} examples/selfie.py "$SHARED/data/coco128" "$WORK/people.csv"
NET="$SHARED/models/selfie_segmentation.onnx --input 3x256x256 --task segment --adapter examples.selfie:adapter"
NET="$NET --data $WORK/people.csv --batch-size 8"
$RUN sweep $NET --tiles 7xW,Hx7,7x7,3xW,Hx3,3x3,1xW,7xW:running,3xW:running,1xW:running,14xW \
    -o results/accuracy/sweep_segment.csv --plot results/accuracy/sweep_segment.png --force
$RUN sensitivity $NET --tiles 3xW,7xW --plot results/accuracy/sensitivity_segment.png --force --json > "$WORK/a"
mv "$WORK/a" results/accuracy/sensitivity_segment.json

NET="$SHARED/models/centernet_mobilenetv3_075.onnx --input 3x512x512 --task detect --adapter examples.centernet:adapter"
NET="$NET --data $SHARED/data/coco128/instances_val.json --batch-size 4"
$RUN sweep $NET --tiles 7xW,7xW:running,Hx7,3xW,14xW,1xW,1xW:running,3xW:running,7x7,14xW:running \
    -o results/accuracy/sweep_detect.csv --plot results/accuracy/sweep_detect.png --force
$RUN sensitivity $NET --tiles 7xW --plot results/accuracy/sensitivity_detect.png --force --json > "$WORK/a"
mv "$WORK/a" results/accuracy/sensitivity_detect.json

${PYTHON:-python} examples/ocr_pages.py "$WORK/pages"
OCR=$(${PYTHON:-python} -c "import rapidocr; print(rapidocr.__path__[0])")/models/PP-OCRv6_det_small.onnx
for kind in plain small dense rotated; do
    $RUN sweep "$OCR" --input 3x640x640 --task segment --adapter examples.ocr_pages:adapter \
        --data "$WORK/pages/$kind" --tiles 7xW,1xW,3xW,7xW:running -o results/accuracy/sweep_ocr.csv --batch-size 2
done
rm -r "$WORK"
