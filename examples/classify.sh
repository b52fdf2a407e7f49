#!/bin/sh
# The main job on a classifier: what a network has, what tiles save, what they cost in accuracy, a file to deploy.
set -eu
shared="${TILEDSE_SHARED:-../shared}"
out="${TILEDSE_DEMO:-demo}"
mkdir -p "$out"

if [ -f "$shared/models/tf_mobilenetv3_small_100.safetensors" ]; then
    model=timm:tf_mobilenetv3_small_100
    from="--weights $shared/models/tf_mobilenetv3_small_100.safetensors"
elif tiledse find timm:tf_mobilenetv3_small_100 --pretrained >/dev/null 2>&1; then
    model=timm:tf_mobilenetv3_small_100
    from=--pretrained
else
    echo "No trained weights here ($shared/models is absent and the hub does not answer): RANDOM weights from here on."
    model=timm:tf_mobilenetv3_small_100
    from=
fi

run() {
    echo
    echo "\$ $*"
    "$@"
}

# $from is empty or one option with its value: it must be split.
run tiledse find $model $from
run tiledse cost $model $from --tile 7xW
run tiledse convert $model $from --tile 7xW -o "$out/mobilenetv3_small_tse.safetensors" --force
if [ -d "$shared/data/imagenet_val1300" ] && [ -n "$from" ]; then
    run tiledse eval $model $from --tile 7xW --data "$shared/data/imagenet_val1300" --preprocess crop
else
    echo "No accuracy: it takes trained weights and labelled images (tiledse eval --data DIR)."
fi
