"""How a network is named: the forms of a MODEL text, as the help and errors list them."""

FORMS = "timm:NAME, torchvision:NAME, effdet:NAME, zoo:NAME, package.module:factory, FILE.onnx or FILE.tflite"
